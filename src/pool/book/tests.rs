//! One fact each. What must hold in any order of calls is in `model`.

use std::time::Duration;

use super::*;

const NO_LIMITS: ServiceLimits = ServiceLimits {
    max_servers: 0,
    min_servers: 0,
    weight: 1,
    kept_servers: 0,
};
const T0: ThreadId = ThreadId(0);
const T1: ThreadId = ThreadId(1);

fn sized(size: u32) -> PoolLimits {
    PoolLimits {
        size,
        min_size: 0,
        reserve_size: 0,
        reserve_after: Duration::ZERO,
        server_idle: None,
        in_turn: false,
    }
}

fn ms(millis: u64) -> Duration {
    Duration::from_millis(millis)
}

/// A book with one host, and somebody who carries out its actions when told to.
struct Desk {
    book: Book,
    host: HostId,
    now: Duration,
    out: Vec<Action>,
}

impl Desk {
    fn new(budget: u32) -> Self {
        let mut book = Book::new();
        let host = book.add_host(Some(budget));
        Self {
            book,
            host,
            now: Duration::ZERO,
            out: Vec::new(),
        }
    }

    fn pool(&mut self, limits: PoolLimits) -> PoolId {
        let (database, user) = (self.book.add_database(0), self.book.add_user(0));
        self.book.add_pool(
            PoolPlace {
                host: self.host,
                database,
                user,
            },
            limits,
        )
    }

    fn service(&mut self, limits: ServiceLimits) -> ServiceId {
        self.book.add_service(limits)
    }

    fn ask_on(&mut self, pool: PoolId, party: impl Into<Party>, thread: ThreadId) -> Asked {
        self.book
            .ask(self.now, pool, party, thread, None, &mut self.out)
    }

    fn wait_on(&mut self, pool: PoolId, party: impl Into<Party>, thread: ThreadId) -> WaiterId {
        match self.ask_on(pool, party, thread) {
            Asked::Waiting(waiter) => waiter,
            Asked::Granted { .. } => panic!("lent at once"),
        }
    }

    fn wait(&mut self, pool: PoolId, party: impl Into<Party>) -> WaiterId {
        self.wait_on(pool, party, T0)
    }

    /// Asks, dials and takes: a lease on a connection of its own.
    fn lease_on(&mut self, pool: PoolId, party: impl Into<Party>, thread: ThreadId) -> ServerId {
        let waiter = self.wait_on(pool, party, thread);
        let server = self.dial_ordered();
        assert!(self.book.dialed(self.now, server, None, &mut self.out));
        assert_eq!(self.granted(), vec![(waiter, server)]);
        self.book.take(waiter).unwrap()
    }

    fn lease(&mut self, pool: PoolId, party: impl Into<Party>) -> ServerId {
        self.lease_on(pool, party, T0)
    }

    fn release(&mut self, server: ServerId) {
        assert!(self.book.release(self.now, server, &mut self.out));
    }

    fn gate(&mut self, pool: PoolId, gate: Gate) {
        assert!(self.book.set_gate(self.now, pool, gate, &mut self.out));
    }

    fn closed(&mut self, server: ServerId) {
        assert!(self.book.closed(self.now, server, &mut self.out));
    }

    fn tick_at(&mut self, now: Duration) {
        self.now = now;
        let _ = self.book.tick(now, &mut self.out);
    }

    /// The one dial ordered since the last look.
    fn dial_ordered(&mut self) -> ServerId {
        match self.out.drain(..).as_slice() {
            [Action::Dial { server, .. }] => *server,
            other => panic!("no single dial: {other:?}"),
        }
    }

    /// The one close ordered since the last look.
    fn close_ordered(&mut self) -> (ServerId, CloseReason) {
        match self.out.drain(..).as_slice() {
            [Action::Close { server, reason, .. }] => (*server, *reason),
            other => panic!("no single close: {other:?}"),
        }
    }

    /// All that was ordered since the last look, which is grants only.
    fn granted(&mut self) -> Vec<(WaiterId, ServerId)> {
        let grants = self.out.drain(..).map(|action| match action {
            Action::Grant { waiter, server, .. } => (waiter, server),
            other => panic!("not a grant: {other:?}"),
        });
        grants.collect()
    }

    fn refused(&mut self) -> Vec<(WaiterId, Refusal)> {
        let refusals = self.out.drain(..).map(|action| match action {
            Action::Refuse { waiter, why, .. } => (waiter, why),
            other => panic!("not a refusal: {other:?}"),
        });
        refusals.collect()
    }

    fn quiet(&mut self) {
        assert_eq!(self.out, vec![]);
    }
}

#[test]
fn a_service_at_its_cap_blocks_no_other_service() {
    let mut desk = Desk::new(10);
    let pool = desk.pool(sized(5));
    let site = desk.service(ServiceLimits {
        max_servers: 1,
        ..NO_LIMITS
    });
    let bot = desk.service(NO_LIMITS);
    let held = desk.lease(pool, site);
    let capped = desk.wait(pool, site);
    desk.quiet();
    let other = desk.lease(pool, bot);
    desk.release(other);
    desk.quiet();
    desk.release(held);
    assert_eq!(desk.granted(), vec![(capped, held)]);
}

#[test]
fn the_longest_waiter_goes_first_and_a_newcomer_waits() {
    let mut desk = Desk::new(1);
    let pool = desk.pool(sized(1));
    let site = desk.service(NO_LIMITS);
    let held = desk.lease(pool, site);
    let first = desk.wait(pool, site);
    let second = desk.wait(pool, site);
    desk.release(held);
    assert_eq!(desk.granted(), vec![(first, held)]);
    let third = desk.wait(pool, site);
    desk.book.take(first).unwrap();
    desk.release(held);
    assert_eq!(desk.granted(), vec![(second, held)]);
    assert_eq!(desk.book.take(third), None);
}

#[test]
fn the_most_recently_used_one_of_the_own_thread_is_lent() {
    let mut desk = Desk::new(5);
    let pool = desk.pool(sized(5));
    let site = desk.service(NO_LIMITS);
    let leases = [T0, T0, T1].map(|thread| desk.lease_on(pool, site, thread));
    for server in leases {
        desk.now += ms(1);
        desk.release(server);
    }
    assert_eq!(
        desk.ask_on(pool, site, T0),
        Asked::Granted {
            server: leases[1],
            from: T0
        }
    );
    assert_eq!(
        desk.ask_on(pool, site, T0),
        Asked::Granted {
            server: leases[0],
            from: T0
        }
    );
    assert_eq!(
        desk.ask_on(pool, site, T0),
        Asked::Granted {
            server: leases[2],
            from: T1
        }
    );
    assert_eq!(desk.book.server(leases[2]).unwrap().thread, T0);
}

#[test]
fn a_thread_keeps_its_connection_unless_anothers_waiter_is_much_older() {
    for (headstart, moves) in [(ms(5), false), (ms(6), true)] {
        let mut desk = Desk::new(1);
        let pool = desk.pool(sized(1));
        let site = desk.service(NO_LIMITS);
        let held = desk.lease_on(pool, site, T0);
        let elsewhere = desk.wait_on(pool, site, T1);
        desk.now += headstart;
        let here = desk.wait_on(pool, site, T0);
        desk.release(held);
        assert_eq!(
            desk.granted(),
            vec![(if moves { elsewhere } else { here }, held)]
        );
    }
}

#[test]
fn a_service_within_its_share_goes_before_one_that_waited_longer() {
    let mut desk = Desk::new(4);
    let pool = desk.pool(sized(4));
    let (site, bot) = (desk.service(NO_LIMITS), desk.service(NO_LIMITS));
    let leases = [(); 4].map(|()| desk.lease(pool, site));
    let of_site = desk.wait(pool, site);
    let of_bot = [(); 3].map(|()| desk.wait(pool, bot));
    let next = leases.map(|server| {
        desk.release(server);
        desk.granted()[0].0
    });
    // Two each is fair; then whoever waited longest, within the share.
    assert_eq!(next[..3], [of_bot[0], of_bot[1], of_site]);
}

#[test]
fn weights_make_shares() {
    let mut desk = Desk::new(4);
    let pool = desk.pool(sized(4));
    let site = desk.service(ServiceLimits {
        weight: 3,
        ..NO_LIMITS
    });
    let bot = desk.service(NO_LIMITS);
    let leases = [(); 4].map(|()| desk.lease(pool, site));
    let of_bot = [(); 2].map(|()| desk.wait(pool, bot));
    let of_site = desk.wait(pool, site);
    desk.release(leases[0]);
    assert_eq!(desk.granted()[0].0, of_bot[0]);
    desk.release(leases[1]);
    assert_eq!(desk.granted()[0].0, of_site, "three to one is fair here");
}

/// A service with four server connections, one of them kept; the old deployment, which may not have that one; and the new one.
fn with_one_kept(desk: &mut Desk) -> (ServiceId, Party, Party) {
    let service = desk.service(ServiceLimits {
        max_servers: 4,
        kept_servers: 1,
        ..NO_LIMITS
    });
    let old = Party {
        service,
        reach: Reach::AllButKept,
    };
    (service, old, service.into())
}

#[test]
fn what_is_kept_of_a_cap_is_there_for_those_who_may_have_all() {
    let mut desk = Desk::new(9);
    let pool = desk.pool(sized(9));
    let (service, old, new) = with_one_kept(&mut desk);
    let held = [(); 3].map(|()| desk.lease(pool, old));
    let of_old = desk.wait(pool, old);
    assert_eq!(desk.out, [], "the last one is not for it");
    assert_eq!(desk.book.waiters_at_cap(service), 1);
    let last = desk.lease(pool, new);
    let of_new = desk.wait(pool, new);
    assert_eq!(desk.book.waiters_at_cap(service), 2);
    // Who has waited longer may not go.
    desk.release(held[0]);
    assert_eq!(desk.granted(), [(of_new, held[0])]);
    desk.release(last);
    assert_eq!(desk.granted(), [], "that is the kept one again");
    desk.release(held[1]);
    assert_eq!(desk.granted(), [(of_old, held[1])]);
}

#[test]
fn what_is_kept_may_lie_idle_and_is_not_lent_to_others_of_its_service() {
    let mut desk = Desk::new(9);
    let (pool, elsewhere) = (desk.pool(sized(9)), desk.pool(sized(9)));
    let (_, old, new) = with_one_kept(&mut desk);
    let held = [(); 3].map(|()| desk.lease(pool, old));
    let idle = desk.lease(pool, new);
    desk.release(idle);
    let of_old = desk.wait(pool, old);
    assert_eq!(desk.out, []);
    // In another pool, whoever may have all has room made by closing it.
    desk.wait(elsewhere, new);
    desk.tick_at(EVICT_AFTER);
    assert_eq!(desk.close_ordered(), (idle, CloseReason::MadeRoom));
    desk.closed(idle);
    let dialed = desk.dial_ordered();
    assert!(desk.book.dialed(desk.now, dialed, None, &mut desk.out));
    assert_eq!(desk.granted().len(), 1);
    // What comes back in one pool lets a waiter of another go.
    let waits_elsewhere = desk.wait(elsewhere, old);
    assert!(desk.book.leave(desk.now, of_old, &mut desk.out));
    assert_eq!(desk.out, []);
    desk.release(held[0]);
    assert_eq!(desk.out, [], "three are in use still");
    desk.release(held[1]);
    desk.tick_at(2 * EVICT_AFTER);
    assert_eq!(desk.close_ordered().1, CloseReason::MadeRoom);
    let _ = waits_elsewhere;
}

#[test]
fn only_services_above_their_share_wait_and_still_the_longest_waiter_goes() {
    let mut desk = Desk::new(3);
    let pool = desk.pool(sized(3));
    let (site, bot) = (desk.service(NO_LIMITS), desk.service(NO_LIMITS));
    let of_site = [(); 2].map(|()| desk.lease(pool, site));
    let _of_bot = desk.lease(pool, bot);
    // Of 3, each has a share of 1.5; site has 2, and bot would have 2.
    let waiter = desk.wait(pool, bot);
    desk.release(of_site[0]);
    assert_eq!(desk.granted(), vec![(waiter, of_site[0])]);
    let (site_view, bot_view) = (desk.book.service(site), desk.book.service(bot));
    assert_eq!(
        (site_view.tally.total(), bot_view.tally.total()),
        (1, 2),
        "lending moves the account"
    );
}

#[test]
fn a_full_postgres_is_shared_out_at_once() {
    let mut desk = Desk::new(9);
    let (full, empty) = (desk.pool(sized(9)), desk.pool(sized(9)));
    let (site, bot) = (desk.service(NO_LIMITS), desk.service(NO_LIMITS));
    let idle = desk.lease(full, site);
    desk.release(idle);
    let waiter = desk.wait(empty, bot);
    let refused = desk.dial_ordered();
    assert!(desk.book.dial_found_full(desk.now, refused, &mut desk.out));
    desk.tick_at(EVICT_AFTER);
    assert_eq!(desk.close_ordered(), (idle, CloseReason::MadeRoom));
    desk.closed(idle);
    let dialed = desk.dial_ordered();
    assert!(desk.book.dialed(desk.now, dialed, None, &mut desk.out));
    assert_eq!(desk.granted(), vec![(waiter, dialed)]);
}

#[test]
fn nobody_dials_into_what_is_kept_for_a_guaranteed_minimum() {
    let mut desk = Desk::new(3);
    let pool = desk.pool(sized(9));
    let (sure, other) = (
        desk.service(ServiceLimits {
            min_servers: 2,
            ..NO_LIMITS
        }),
        desk.service(NO_LIMITS),
    );
    let held = desk.lease(pool, sure);
    desk.lease(pool, other);
    desk.wait(pool, other);
    desk.quiet();
    // Nor is its idle connection lent away.
    desk.release(held);
    desk.quiet();
    assert_eq!(
        desk.ask_on(pool, sure, T0),
        Asked::Granted {
            server: held,
            from: T0
        }
    );
    desk.lease(pool, sure);
}

#[test]
fn a_guarantee_violated_is_made_good_from_the_next_release() {
    let mut desk = Desk::new(2);
    let (full, empty) = (
        desk.pool(PoolLimits {
            min_size: 2,
            ..sized(9)
        }),
        desk.pool(sized(9)),
    );
    let (site, sure) = (
        desk.service(NO_LIMITS),
        desk.service(ServiceLimits {
            min_servers: 1,
            ..NO_LIMITS
        }),
    );
    let leases = [(); 2].map(|()| desk.lease(full, site));
    desk.wait(full, site);
    let waiter = desk.wait(empty, sure);
    desk.quiet();
    desk.release(leases[0]);
    assert_eq!(desk.close_ordered(), (leases[0], CloseReason::MadeRoom));
    desk.closed(leases[0]);
    let dialed = desk.dial_ordered();
    assert!(desk.book.dialed(desk.now, dialed, None, &mut desk.out));
    assert_eq!(desk.granted(), vec![(waiter, dialed)]);
}

#[test]
fn server_connections_that_take_turns_are_lent_in_the_order_in_which_they_came_back() {
    let mut desk = Desk::new(9);
    let pool = desk.pool(PoolLimits {
        in_turn: true,
        server_idle: Some(ms(100)),
        ..sized(9)
    });
    let site = desk.service(NO_LIMITS);
    // On two threads: turns are taken among all of them.
    let leases = [T0, T1, T0].map(|thread| desk.lease_on(pool, site, thread));
    for lease in leases {
        desk.now += ms(1);
        desk.release(lease);
    }
    let mut lent = || {
        desk.now += ms(1);
        let Asked::Granted { server, .. } = desk.ask_on(pool, site, T0) else {
            panic!("one is idle");
        };
        desk.now += ms(1);
        desk.release(server);
        server
    };
    assert_eq!(
        [lent(), lent(), lent(), lent()],
        [0, 1, 2, 0].map(|at| leases[at])
    );
    // The one that is closed first is the one unused for longest here too.
    desk.tick_at(desk.now + ms(97));
    assert_eq!(desk.close_ordered(), (leases[1], CloseReason::ServerIdle));
    // With another order those that are idle already are lent in that one.
    let limits = sized(9);
    assert!(desk.book.set_pool(desk.now, pool, limits, &mut desk.out));
    let asked = desk.ask_on(pool, site, T0);
    assert!(matches!(asked, Asked::Granted { server, .. } if server == leases[0]));
}

#[test]
fn guarantees_beyond_the_budget_do_not_stop_each_other() {
    let mut desk = Desk::new(1);
    let pool = desk.pool(sized(9));
    let sure = ServiceLimits {
        min_servers: 1,
        ..NO_LIMITS
    };
    let (one, other) = (desk.service(sure), desk.service(sure));
    let held = desk.lease(pool, one);
    let waiter = desk.wait(pool, other);
    assert!(desk.book.discard(held));
    desk.wait(pool, one);
    desk.closed(held);
    let dialed = desk.dial_ordered();
    assert!(desk.book.dialed(desk.now, dialed, None, &mut desk.out));
    assert_eq!(desk.granted(), vec![(waiter, dialed)]);
}

#[test]
fn an_idle_connection_is_closed_for_another_pool_once_idle_for_long_and_no_more_than_needed() {
    let mut desk = Desk::new(3);
    let (rich, poor) = (desk.pool(sized(9)), desk.pool(sized(9)));
    let site = desk.service(NO_LIMITS);
    let leases = [(); 3].map(|()| desk.lease(rich, site));
    for server in leases {
        desk.now += ms(1);
        desk.release(server);
    }
    desk.now += EVICT_AFTER.checked_sub(ms(2)).unwrap();
    desk.wait(poor, site);
    assert_eq!(
        desk.close_ordered(),
        (leases[0], CloseReason::MadeRoom),
        "the longest idle"
    );
    desk.tick_at(desk.now + ms(100));
    desk.quiet();
    // The room is spoken for.
    let _ = desk.ask_on(rich, site, T0);
    let _ = desk.ask_on(rich, site, T0);
    let newcomer = desk.wait(rich, site);
    desk.closed(leases[0]);
    let dialed = desk.dial_ordered();
    assert_eq!(desk.book.server(dialed).unwrap().pool, poor);
    assert_eq!(desk.book.take(newcomer), None);
}

#[test]
fn a_fresh_idle_connection_is_closed_only_for_a_service_below_the_share_of_its_owner() {
    for (same_service, closes) in [(true, false), (false, true)] {
        let mut desk = Desk::new(2);
        let (rich, poor) = (desk.pool(sized(9)), desk.pool(sized(9)));
        let (site, bot) = (desk.service(NO_LIMITS), desk.service(NO_LIMITS));
        let leases = [(); 2].map(|()| desk.lease(rich, site));
        for server in leases {
            desk.release(server);
        }
        desk.wait(poor, if same_service { site } else { bot });
        assert_eq!(desk.out.len() == 1, closes);
        // Whoever has waited long enough may have it in any case.
        desk.tick_at(EVICT_AFTER);
        assert_eq!(desk.close_ordered().1, CloseReason::MadeRoom);
    }
}

#[test]
fn two_pools_under_a_spent_budget_do_not_close_and_dial_at_each_release() {
    let mut desk = Desk::new(1);
    let (one, other) = (desk.pool(sized(9)), desk.pool(sized(9)));
    let site = desk.service(NO_LIMITS);
    let held = desk.lease(one, site);
    desk.wait(other, site);
    desk.now += ms(100);
    let here = desk.wait(one, site);
    desk.now += ms(600);
    desk.release(held);
    assert_eq!(
        desk.granted(),
        vec![(here, held)],
        "hardly younger, and no dial needed"
    );
    desk.book.take(here).unwrap();
    desk.wait(one, site);
    desk.release(held);
    assert_eq!(
        desk.close_ordered(),
        (held, CloseReason::MadeRoom),
        "now the other is much older"
    );
}

#[test]
fn a_lowered_budget_closes_the_idle_at_once_and_the_leased_when_they_come_back() {
    let mut desk = Desk::new(3);
    let pool = desk.pool(sized(9));
    let site = desk.service(NO_LIMITS);
    let [idle, one, other] = [(); 3].map(|()| desk.lease(pool, site));
    desk.release(idle);
    desk.book.set_budget(desk.now, desk.host, 1, &mut desk.out);
    assert_eq!(desk.close_ordered(), (idle, CloseReason::OverBudget));
    desk.wait(pool, site);
    desk.release(one);
    assert_eq!(desk.close_ordered(), (one, CloseReason::OverBudget));
    desk.closed(idle);
    desk.closed(one);
    desk.release(other);
    assert_eq!(desk.granted().len(), 1);
}

#[test]
fn an_unknown_budget_allows_one_dial() {
    let mut book = Book::new();
    let host = book.add_host(None);
    let place = PoolPlace {
        host,
        database: book.add_database(0),
        user: book.add_user(0),
    };
    let (pool, site) = (book.add_pool(place, sized(9)), book.add_service(NO_LIMITS));
    let mut out = Vec::new();
    for _ in 0..3 {
        let _ = book.ask(Duration::ZERO, pool, site, T0, None, &mut out);
    }
    assert_eq!(out.len(), 1);
    book.set_budget(Duration::ZERO, host, 9, &mut out);
    assert_eq!(out.len(), 3);
}

#[test]
fn exactly_those_past_their_deadline_are_refused_in_any_order() {
    let mut desk = Desk::new(0);
    let pool = desk.pool(sized(1));
    let site = desk.service(NO_LIMITS);
    let waiters = [Some(300), None, Some(100), Some(200)].map(|deadline| {
        let asked = desk
            .book
            .ask(desk.now, pool, site, T0, deadline.map(ms), &mut desk.out);
        let Asked::Waiting(waiter) = asked else {
            panic!("there is no budget")
        };
        waiter
    });
    desk.tick_at(ms(99));
    desk.quiet();
    desk.tick_at(ms(200));
    assert_eq!(
        desk.refused(),
        [2, 3].map(|at| (waiters[at], Refusal::QueryWait))
    );
    assert!(desk.book.next_tick().unwrap() <= ms(300));
    desk.tick_at(ms(300));
    assert_eq!(desk.refused(), vec![(waiters[0], Refusal::QueryWait)]);
    desk.tick_at(ms(1_000_000));
    desk.quiet();
}

#[test]
fn the_reserve_opens_for_those_who_have_waited_for_it() {
    let mut desk = Desk::new(9);
    let pool = desk.pool(PoolLimits {
        reserve_size: 2,
        reserve_after: ms(50),
        ..sized(1)
    });
    let site = desk.service(NO_LIMITS);
    desk.lease(pool, site);
    desk.wait(pool, site);
    desk.tick_at(ms(49));
    desk.quiet();
    desk.tick_at(ms(50));
    desk.dial_ordered();
    desk.wait(pool, site);
    assert_eq!(
        desk.book.pool(pool).unwrap().tally.total(),
        3,
        "while its head waits, a group draws on the reserve"
    );
}

#[test]
fn a_back_off_doubles_and_dials_that_fail_together_count_once() {
    let mut desk = Desk::new(9);
    let pool = desk.pool(sized(9));
    let site = desk.service(NO_LIMITS);
    desk.wait(pool, site);
    desk.wait(pool, site);
    let retry = Some(Retry {
        first: ms(1000),
        jitter: 0.0,
    });
    for (wait, expected) in [
        (1000, 2),
        (2000, 1),
        (4000, 1),
        (8000, 1),
        (15000, 1),
        (15000, 1),
    ] {
        let dials: Vec<_> = desk.book.servers().collect();
        assert_eq!(dials.len(), expected);
        desk.out.clear();
        for dial in dials {
            assert!(desk.book.dial_failed(desk.now, dial, retry, &mut desk.out));
        }
        desk.quiet();
        let until = desk.now + ms(wait);
        assert_eq!(desk.book.pool(pool).unwrap().retry_at, Some(until));
        desk.tick_at(until.checked_sub(ms(1)).unwrap());
        desk.quiet();
        desk.tick_at(until);
    }
}

#[test]
fn what_a_waiter_leaves_behind_goes_to_the_next() {
    let mut desk = Desk::new(1);
    let pool = desk.pool(sized(1));
    let site = desk.service(NO_LIMITS);
    let held = desk.lease(pool, site);
    let (first, second) = (desk.wait(pool, site), desk.wait(pool, site));
    desk.release(held);
    assert_eq!(desk.granted(), vec![(first, held)]);
    assert!(desk.book.leave(desk.now, first, &mut desk.out));
    assert_eq!(desk.granted(), vec![(second, held)]);
    assert!(!desk.book.leave(desk.now, first, &mut desk.out));
    assert_eq!(desk.book.take(first), None, "its id is spent");
}

#[test]
fn min_size_is_kept_up_and_spared_and_what_is_beyond_is_closed_when_idle() {
    let mut desk = Desk::new(9);
    let limits = PoolLimits {
        min_size: 1,
        server_idle: Some(ms(1000)),
        ..sized(9)
    };
    let pool = desk.pool(limits);
    let site = desk.service(NO_LIMITS);
    let leases = [(); 2].map(|()| desk.lease(pool, site));
    for server in leases {
        desk.release(server);
    }
    desk.tick_at(ms(1000));
    assert_eq!(desk.close_ordered(), (leases[0], CloseReason::ServerIdle));
    assert!(desk.book.die(desk.now, leases[1], &mut desk.out));
    assert_eq!(
        desk.book.next_tick(),
        Some(desk.now),
        "there is something to do"
    );
    desk.tick_at(desk.now);
    desk.dial_ordered();
}

#[test]
fn a_connection_past_its_lifetime_is_closed_when_idle_and_when_it_comes_back() {
    let mut desk = Desk::new(9);
    let pool = desk.pool(sized(9));
    let site = desk.service(NO_LIMITS);
    let waiters = [(); 2].map(|()| {
        let waiter = desk.wait(pool, site);
        let server = desk.dial_ordered();
        assert!(
            desk.book
                .dialed(desk.now, server, Some(ms(100)), &mut desk.out)
        );
        (waiter, desk.granted()[0].1)
    });
    for (waiter, _) in waiters {
        desk.book.take(waiter).unwrap();
    }
    desk.release(waiters[0].1);
    desk.tick_at(ms(100));
    assert_eq!(
        desk.close_ordered(),
        (waiters[0].1, CloseReason::ServerLifetime)
    );
    desk.release(waiters[1].1);
    assert_eq!(
        desk.close_ordered(),
        (waiters[1].1, CloseReason::ServerLifetime)
    );
}

#[test]
fn a_pool_that_is_told_to_reconnect_can_then_be_removed() {
    let mut desk = Desk::new(9);
    let pool = desk.pool(sized(9));
    let site = desk.service(NO_LIMITS);
    let [idle, leased] = [(); 2].map(|()| desk.lease(pool, site));
    desk.release(idle);
    desk.book.reconnect(desk.now, pool, &mut desk.out);
    assert_eq!(desk.close_ordered(), (idle, CloseReason::Reconnect));
    desk.release(leased);
    assert_eq!(desk.close_ordered(), (leased, CloseReason::Reconnect));
    assert!(!desk.book.remove_pool(pool));
    desk.closed(idle);
    desk.closed(leased);
    assert!(desk.book.remove_pool(pool));
    assert_eq!(desk.book.pool(pool), None);
    let next = desk.pool(sized(1));
    assert!(
        next.index() == pool.index() && next != pool,
        "a stale id is found out"
    );
}

#[test]
fn one_user_cap_spans_hosts_and_room_is_made_across_them() {
    let mut desk = Desk::new(9);
    let (here, there) = (desk.host, desk.book.add_host(Some(9)));
    let (database, user) = (desk.book.add_database(0), desk.book.add_user(1));
    let one = desk.book.add_pool(
        PoolPlace {
            host: here,
            database,
            user,
        },
        sized(9),
    );
    let other = desk.book.add_pool(
        PoolPlace {
            host: there,
            database,
            user,
        },
        sized(9),
    );
    let site = desk.service(NO_LIMITS);
    let held = desk.lease(one, site);
    desk.release(held);
    desk.wait(other, site);
    desk.tick_at(EVICT_AFTER);
    assert_eq!(desk.close_ordered(), (held, CloseReason::MadeRoom));
}

#[test]
fn two_hosts_under_one_users_cap_do_not_pass_its_room_to_and_fro() {
    let mut desk = Desk::new(9);
    let (here, there) = (desk.host, desk.book.add_host(Some(9)));
    let (database, user) = (desk.book.add_database(0), desk.book.add_user(1));
    let pools = [here, there].map(|host| {
        desk.book.add_pool(
            PoolPlace {
                host,
                database,
                user,
            },
            sized(9),
        )
    });
    let services = [1, 3].map(|weight| {
        desk.service(ServiceLimits {
            weight,
            ..NO_LIMITS
        })
    });
    for pool in pools {
        for service in services {
            desk.wait(pool, service);
        }
    }
    desk.now += EVICT_AFTER;
    let mut grants = 0;
    for _ in 0..20 {
        for action in std::mem::take(&mut desk.out) {
            match action {
                Action::Dial { server, .. } => {
                    assert!(desk.book.dialed(desk.now, server, None, &mut desk.out));
                }
                Action::Close { server, .. } => desk.closed(server),
                Action::Grant { waiter, .. } => {
                    grants += 1;
                    let server = desk.book.take(waiter).unwrap();
                    desk.release(server);
                }
                Action::Refuse { .. } => panic!("nobody is refused"),
            }
        }
    }
    assert_eq!(grants, 4);
}

const RETRY: Option<Retry> = Some(Retry {
    first: Duration::from_secs(1),
    jitter: 0.0,
});

impl Desk {
    /// The dials ordered since the last look, and nothing else.
    fn dials_ordered(&mut self) -> Vec<ServerId> {
        let dials = self.out.drain(..).map(|action| match action {
            Action::Dial { server, .. } => server,
            other => panic!("no dial: {other:?}"),
        });
        dials.collect()
    }
}

#[test]
fn a_crowd_of_waiters_does_not_dial_all_at_once() {
    let mut desk = Desk::new(100);
    let (pool, service) = (desk.pool(sized(50)), desk.service(NO_LIMITS));
    for _ in 0..50 {
        desk.wait(pool, service);
    }
    let dials = desk.dials_ordered();
    assert_eq!(dials.len(), DIALS_AT_ONCE as usize);
    assert!(desk.book.dialed(desk.now, dials[0], None, &mut desk.out));
    let next = desk.out.split_off(1);
    assert_eq!(desk.granted().len(), 1);
    assert!(matches!(next[..], [Action::Dial { .. }]), "{next:?}");
}

#[test]
fn a_postgres_that_is_down_is_probed_and_the_first_success_ends_every_pause() {
    let mut desk = Desk::new(100);
    let service = desk.service(NO_LIMITS);
    let pools: Vec<_> = (0..6).map(|_| desk.pool(sized(10))).collect();
    for pool in &pools {
        desk.wait(*pool, service);
        desk.wait(*pool, service);
    }
    for dial in desk.dials_ordered() {
        assert!(desk.book.dial_failed(desk.now, dial, RETRY, &mut desk.out));
    }
    desk.quiet();
    desk.tick_at(ms(1000));
    let probes = desk.dials_ordered();
    let pool_of = |desk: &Desk, probe: &ServerId| desk.book.server(*probe).unwrap().pool;
    let theirs: Vec<_> = probes.iter().map(|probe| pool_of(&desk, probe)).collect();
    assert_eq!(
        theirs,
        pools[..PROBES_AT_ONCE as usize],
        "one for each, oldest waiter first"
    );

    // One fails, and the next pool has its turn; one succeeds, and everybody goes.
    assert!(
        desk.book
            .dial_failed(desk.now, probes[0], RETRY, &mut desk.out)
    );
    let more = desk.dials_ordered();
    assert_eq!(more.len(), 1);
    assert_eq!(pool_of(&desk, &more[0]), pools[4]);
    assert!(desk.book.dialed(desk.now, probes[1], None, &mut desk.out));
    let dials = desk.out.split_off(1);
    assert_eq!(desk.granted().len(), 1);
    // Of twelve waiters one is served, and three dials were in flight.
    assert_eq!(dials.len(), 12 - 1 - 3, "{dials:?}");
    for pool in pools {
        assert_eq!(desk.book.pool(pool).unwrap().retry_at, None);
    }
}

#[test]
fn the_waiters_of_a_paused_pool_wait_and_are_served_in_their_order() {
    let mut desk = Desk::new(9);
    let (pool, service) = (desk.pool(sized(2)), desk.service(NO_LIMITS));
    let (leased, idle) = (desk.lease(pool, service), desk.lease(pool, service));
    desk.release(idle);
    desk.gate(pool, Gate::Paused);
    assert_eq!(desk.close_ordered(), (idle, CloseReason::Paused));
    let waiters = [desk.wait(pool, service), desk.wait_on(pool, service, T1)];
    desk.closed(idle);
    desk.tick_at(ms(5000));
    desk.quiet();
    desk.release(leased);
    assert_eq!(desk.close_ordered(), (leased, CloseReason::Paused));
    desk.closed(leased);
    assert_eq!(desk.book.pool(pool).unwrap().tally.total(), 0);
    desk.quiet();
    desk.gate(pool, Gate::Open);
    for waiter in waiters {
        let Action::Dial { server, .. } = desk.out.remove(0) else {
            panic!("no dial");
        };
        let mut others = std::mem::take(&mut desk.out);
        assert!(desk.book.dialed(desk.now, server, None, &mut desk.out));
        assert_eq!(desk.granted(), vec![(waiter, server)]);
        desk.out.append(&mut others);
    }
}

#[test]
fn a_waiter_of_a_paused_pool_is_refused_at_its_deadline() {
    let mut desk = Desk::new(9);
    let (pool, service) = (desk.pool(sized(1)), desk.service(NO_LIMITS));
    desk.gate(pool, Gate::Paused);
    let deadline = Some(ms(300));
    let Asked::Waiting(waiter) =
        desk.book
            .ask(desk.now, pool, service, T0, deadline, &mut desk.out)
    else {
        panic!("lent");
    };
    desk.quiet();
    assert!(desk.book.next_tick().unwrap() <= ms(300));
    desk.tick_at(ms(300));
    assert_eq!(desk.refused(), vec![(waiter, Refusal::QueryWait)]);
}

#[test]
fn a_suspended_pool_lends_nothing_and_keeps_what_it_has() {
    let mut desk = Desk::new(9);
    let (pool, service) = (desk.pool(sized(2)), desk.service(NO_LIMITS));
    let (one, two) = (desk.lease(pool, service), desk.lease(pool, service));
    desk.release(one);
    desk.gate(pool, Gate::Suspended);
    let waiter = desk.wait(pool, service);
    desk.release(two);
    desk.quiet();
    desk.gate(pool, Gate::Open);
    assert_eq!(desk.granted(), vec![(waiter, two)]);
}

#[test]
fn what_was_being_dialled_when_its_pool_was_paused_is_closed() {
    let mut desk = Desk::new(9);
    let (pool, service) = (desk.pool(sized(1)), desk.service(NO_LIMITS));
    desk.wait(pool, service);
    let server = desk.dial_ordered();
    desk.gate(pool, Gate::Paused);
    assert!(desk.book.dialed(desk.now, server, None, &mut desk.out));
    assert_eq!(desk.close_ordered(), (server, CloseReason::Paused));
}

#[test]
fn nobody_gives_way_to_the_waiters_of_a_paused_pool() {
    let mut desk = Desk::new(1);
    let (pool, other) = (desk.pool(sized(1)), desk.pool(sized(1)));
    let (service, second) = (desk.service(NO_LIMITS), desk.service(NO_LIMITS));
    let idle = desk.lease(other, second);
    desk.release(idle);
    desk.gate(pool, Gate::Paused);
    desk.wait(pool, service);
    desk.tick_at(ms(5000));
    desk.quiet();
    desk.gate(pool, Gate::Open);
    desk.tick_at(ms(5000));
    assert_eq!(desk.close_ordered(), (idle, CloseReason::MadeRoom));
}

#[test]
fn room_that_was_made_for_a_pool_is_anybodys_once_it_is_paused() {
    let mut desk = Desk::new(1);
    let (pool, other) = (desk.pool(sized(1)), desk.pool(sized(1)));
    let service = desk.service(NO_LIMITS);
    let idle = desk.lease(other, service);
    desk.release(idle);
    desk.wait(pool, service);
    desk.tick_at(ms(5000));
    assert_eq!(desk.close_ordered(), (idle, CloseReason::MadeRoom));
    desk.wait(other, service);
    desk.quiet();
    desk.gate(pool, Gate::Paused);
    desk.closed(idle);
    let server = desk.dial_ordered();
    assert_eq!(desk.book.server(server).unwrap().pool, other);
}

#[test]
fn a_guarantee_that_only_a_paused_pool_could_use_keeps_nobody_out() {
    let mut desk = Desk::new(2);
    let (pool, other) = (desk.pool(sized(2)), desk.pool(sized(2)));
    let guaranteed = desk.service(ServiceLimits {
        min_servers: 2,
        ..NO_LIMITS
    });
    let service = desk.service(NO_LIMITS);
    let leased = desk.lease(pool, guaranteed);
    desk.wait(other, service);
    desk.quiet();
    desk.gate(pool, Gate::Paused);
    let dialed = desk.dial_ordered();
    desk.release(leased);
    let _ = desk.close_ordered();
    desk.gate(pool, Gate::Open);
    desk.closed(leased);
    desk.wait(other, service);
    desk.quiet();
    assert_eq!(desk.book.server(dialed).unwrap().pool, other);
}

#[test]
fn what_is_to_be_replaced_is_counted_until_it_is_gone() {
    let mut desk = Desk::new(9);
    let (pool, service) = (desk.pool(sized(2)), desk.service(NO_LIMITS));
    let (leased, idle) = (desk.lease(pool, service), desk.lease(pool, service));
    desk.release(idle);
    desk.book.reconnect(desk.now, pool, &mut desk.out);
    assert_eq!(desk.close_ordered(), (idle, CloseReason::Reconnect));
    assert_eq!(desk.book.outdated(pool), 2);
    desk.closed(idle);
    let _ = desk.lease(pool, service);
    assert_eq!(desk.book.outdated(pool), 1);
    desk.release(leased);
    assert_eq!(desk.close_ordered(), (leased, CloseReason::Reconnect));
    desk.closed(leased);
    assert_eq!(desk.book.outdated(pool), 0);
}

#[test]
fn one_server_connection_is_replaced_and_the_others_stay() {
    let mut desk = Desk::new(9);
    let (pool, service) = (desk.pool(sized(3)), desk.service(NO_LIMITS));
    let (leased, idle) = (desk.lease(pool, service), desk.lease(pool, service));
    let other = desk.lease(pool, service);
    desk.release(idle);
    desk.release(other);
    assert!(desk.book.replace(desk.now, idle, &mut desk.out));
    assert_eq!(desk.close_ordered(), (idle, CloseReason::Reconnect));
    assert!(desk.book.replace(desk.now, leased, &mut desk.out));
    assert!(!desk.book.replace(desk.now, leased, &mut desk.out), "twice");
    desk.quiet();
    assert_eq!(desk.book.outdated(pool), 2);
    desk.release(leased);
    assert_eq!(desk.close_ordered(), (leased, CloseReason::Reconnect));
    desk.closed(leased);
    desk.closed(idle);
    assert_eq!(desk.book.outdated(pool), 0);
    assert!(!desk.book.server(other).unwrap().replaced);
    assert!(!desk.book.replace(desk.now, idle, &mut desk.out), "gone");
}

#[test]
fn a_pool_that_moves_counts_on_the_new_host_and_its_waiters_keep_their_order() {
    let mut desk = Desk::new(2);
    let other = desk.book.add_host(Some(5));
    let (pool, service) = (desk.pool(sized(3)), desk.service(NO_LIMITS));
    let (leased, idle) = (desk.lease(pool, service), desk.lease(pool, service));
    let (one, two) = (desk.wait(pool, service), desk.wait_on(pool, service, T1));
    desk.quiet();
    assert!(desk.book.move_pool(desk.now, pool, other, &mut desk.out));
    let dialed = desk.dial_ordered();
    let totals = |desk: &Desk| [desk.host, other].map(|host| desk.book.host(host).tally.total());
    assert_eq!(totals(&desk), [2, 1]);
    assert!(desk.book.dialed(desk.now, dialed, None, &mut desk.out));
    assert_eq!(desk.granted(), vec![(one, dialed)]);
    // The pool's own size is for both hosts.
    for old in [leased, idle] {
        desk.release(old);
        assert_eq!(desk.close_ordered(), (old, CloseReason::Reconnect));
        desk.closed(old);
        if old == leased {
            let dialed = desk.dial_ordered();
            assert!(desk.book.dialed(desk.now, dialed, None, &mut desk.out));
            assert_eq!(desk.granted(), vec![(two, dialed)]);
        }
    }
    assert_eq!(totals(&desk), [0, 2]);
}

#[test]
fn nobody_waits_for_a_dial_to_the_host_that_a_pool_has_left() {
    let mut desk = Desk::new(2);
    let other = desk.book.add_host(Some(5));
    let (pool, service) = (desk.pool(sized(3)), desk.service(NO_LIMITS));
    let waiter = desk.wait(pool, service);
    let lost = desk.dial_ordered();
    assert!(desk.book.move_pool(desk.now, pool, other, &mut desk.out));
    let dialed = desk.dial_ordered();
    let retry = Retry {
        first: ms(1000),
        jitter: 0.0,
    };
    assert!(
        desk.book
            .dial_failed(desk.now, lost, Some(retry), &mut desk.out)
    );
    desk.quiet();
    assert_eq!(desk.book.pool(pool).unwrap().retry_at, None);
    assert!(desk.book.dialed(desk.now, dialed, None, &mut desk.out));
    assert_eq!(desk.granted(), vec![(waiter, dialed)]);
}
