//! What the commands do: each a few words to the process, and where it takes time, waiting for it.

use std::sync::Arc;
use std::time::Duration;

use tokio::task::spawn_blocking;
use tokio::time::timeout;

use super::command::{Acting, Call, Done};
use super::process::{ActError, Process, Shutdown};
use crate::wire::reply::{Report, SqlState};

/// How long KILL waits for what it has killed. What takes longer goes on without it.
const KILL_LIMIT: Duration = Duration::from_secs(5);

const DONE: Done = Done {
    notices: Vec::new(),
    tag: None,
};

/// PAUSE [database]. Dropped before it is done, it is undone.
pub fn pause(call: Call) -> Acting {
    Box::pin(async move {
        let pausing = call.process.pause(call.argument(0)).map_err(report)?;
        pausing.done().await.map_err(|error| report(error.into()))?;
        Ok(DONE)
    })
}

/// SUSPEND. Likewise.
pub fn suspend(call: Call) -> Acting {
    Box::pin(async move {
        let mut suspending = call.process.suspend().map_err(report)?;
        let limit = call.process.config().timeouts.suspend;
        let limit = limit.unwrap_or(Duration::MAX);
        if let Ok(outcome) = timeout(limit, suspending.wait()).await {
            outcome.map_err(|error| report(error.into()))?;
        } else {
            // PgBouncer then drops those who still have a transaction; here they end it, and wait with the next.
            tracing::info!("suspended, with transactions still open");
        }
        suspending.keep();
        Ok(DONE)
    })
}

/// RESUME [database]
pub fn resume(call: Call) -> Acting {
    at_once(call, |call| call.process.resume(call.argument(0)))
}

/// DISABLE database
pub fn disable(call: Call) -> Acting {
    at_once(call, |call| call.process.disable(&call.arguments[0], true))
}

/// ENABLE database
pub fn enable(call: Call) -> Acting {
    at_once(call, |call| call.process.disable(&call.arguments[0], false))
}

/// RECONNECT [database]
pub fn reconnect(call: Call) -> Acting {
    at_once(call, |call| call.process.reconnect(call.argument(0)))
}

/// WAIT_CLOSE [database]
pub fn wait_close(call: Call) -> Acting {
    Box::pin(async move {
        let database = call.argument(0);
        call.process.find(database).map_err(report)?;
        let said = call.process.config().log.issued("WAIT_CLOSE", database);
        tracing::info!(
            said,
            database,
            "waits until server connections are replaced"
        );
        call.process.pools().replaced(database).await;
        Ok(DONE)
    })
}

/// KILL [database]
pub fn kill(call: Call) -> Acting {
    Box::pin(async move {
        let killing = call.process.kill(call.argument(0)).map_err(report)?;
        // Whether it took too long, or somebody has resumed it already: it was done.
        let _ = timeout(KILL_LIMIT, killing.done()).await;
        Ok(DONE)
    })
}

/// KILL_CLIENT id
pub fn kill_client(call: Call) -> Acting {
    at_once(call, |call| {
        let id = call.arguments[0].parse().map_err(|_| ActError::NoNumber)?;
        call.process.kill_client(id)
    })
}

/// SHUTDOWN [WAIT_FOR_SERVERS | WAIT_FOR_CLIENTS]
pub fn shutdown(call: Call) -> Acting {
    at_once(call, |call| {
        let is = |word: &str| {
            call.argument(0)
                .is_some_and(|it| it.eq_ignore_ascii_case(word))
        };
        let how = match call.argument(0) {
            None => Shutdown::Immediate,
            Some(_) if is("WAIT_FOR_SERVERS") => Shutdown::WaitForServers,
            Some(_) if is("WAIT_FOR_CLIENTS") => Shutdown::WaitForClients,
            Some(_) => return Err(ActError::Arguments),
        };
        call.process.shut_down(how);
        Ok(())
    })
}

/// RELOAD
pub fn reload(call: Call) -> Acting {
    elsewhere(call, |process, _| process.reload())
}

/// SET key = value
pub fn set(call: Call) -> Acting {
    let tag = format!("SET {}={}", call.arguments[0], call.arguments[1]);
    let setting = elsewhere(call, |process, arguments| {
        process.set(&arguments[0], &arguments[1])
    });
    Box::pin(async move {
        setting.await?;
        Ok(Done {
            tag: Some(tag),
            ..DONE
        })
    })
}

fn at_once(call: Call, act: fn(&Call) -> Result<(), ActError>) -> Acting {
    Box::pin(async move { act(&call).map(|()| DONE).map_err(report) })
}

/// Does what reads files and derives keys, for which clients' transactions are not to wait.
fn elsewhere(call: Call, act: fn(&dyn Process, &[String]) -> Result<(), ActError>) -> Acting {
    Box::pin(async move {
        let process = Arc::clone(&call.process);
        let done = spawn_blocking(move || act(&*process, &call.arguments)).await;
        match done {
            Ok(outcome) => outcome.map(|()| DONE).map_err(report),
            Err(error) => Err(Report::new(SqlState::INTERNAL_ERROR, error.to_string())),
        }
    })
}

fn report(error: ActError) -> Report {
    let message = error.to_string();
    match error {
        ActError::Reload(why) => Report::new(SqlState::CONFIG_FILE_ERROR, message).detail(why),
        ActError::Set(why) => {
            Report::new(SqlState::PROTOCOL_VIOLATION, message).detail(why.to_string())
        }
        _ => Report::new(SqlState::PROTOCOL_VIOLATION, message),
    }
}
