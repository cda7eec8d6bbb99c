//! What the kernel knows of this process, under the names that Prometheus' own clients give it.

use std::fs;
use std::os::unix::fs::MetadataExt;

use rustix::process::{Resource, getrlimit};
use rustix::time::{ClockId, clock_gettime};

use crate::metrics::{self as m, Exposition, Metrics};

/// Tells it. What cannot be read is left out.
pub(super) fn write(metrics: &Metrics, text: &mut Exposition) {
    let cpu = clock_gettime(ClockId::ProcessCPUTime);
    #[expect(clippy::cast_precision_loss, reason = "Prometheus has only floats")]
    let cpu = cpu.tv_sec as f64 + cpu.tv_nsec as f64 / 1e9;
    text.single(&m::PROCESS_CPU, cpu);
    let page = rustix::param::page_size() as u64;
    if let Some([size, resident]) = memory() {
        text.single(&m::PROCESS_RESIDENT, resident * page);
        text.single(&m::PROCESS_VIRTUAL, size * page);
    }
    if let Some(open) = open_files() {
        text.single(&m::PROCESS_OPEN_FDS, open);
    }
    if let Some(most) = getrlimit(Resource::Nofile).current {
        text.single(&m::PROCESS_MAX_FDS, most);
    }
    if let Ok(tasks) = fs::read_dir("/proc/self/task") {
        text.single(&m::PROCESS_THREADS, tasks.count());
    }
    text.family(&m::PROCESS_START)
        .add_moment(&[], metrics.began);
}

/// Pages: all, and those that are resident.
fn memory() -> Option<[u64; 2]> {
    let text = fs::read_to_string("/proc/self/statm").ok()?;
    let mut words = text.split(' ').map(str::parse);
    Some([words.next()?.ok()?, words.next()?.ok()?])
}

/// Newer kernels tell the number as the directory's size; on others it is counted.
fn open_files() -> Option<u64> {
    let path = "/proc/self/fd";
    let told = fs::metadata(path).ok()?.size();
    if told > 0 {
        return Some(told);
    }
    let counted = fs::read_dir(path).ok()?.count();
    u64::try_from(counted).ok()
}
