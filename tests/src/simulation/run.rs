//! One run: a plan carried out on a ground, and checked against the model after each step.

use std::collections::BTreeSet;

use assay_protocol::machine::KeyStoreKind;
use http::Method;
use serde_json::{Value, json};
use time::{Duration, OffsetDateTime};
use uuid::Uuid;

use super::books;
use super::dice::Dice;
use super::ground::{BEGINNING, Ground};
use super::holder::{Call, Holder};
use super::interruption::cut_off;
use super::model::{Checked, Issued, Model, Presented, Request, Status, violation};
use super::plan::{Operation, Step};
use super::replica::Answer;

/// How many fresh nonces an agent takes in a row before it gives up: one for a replica with another clock, and one for
/// a nonce that is used.
const NONCES: usize = 4;
/// The most polls after which a call is stopped: an enrollment takes about this many.
pub(super) const MOST_POLLS: usize = 24;

/// After so many steps the books are compared with the model.
const STEPS_BETWEEN_BOOKS: usize = 4;

/// The most parties in one run.
pub(super) const MOST_HOLDERS: usize = 14;

/// What becomes of a call's answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Fate {
    Answered,
    /// The call is answered, and the answer does not arrive.
    AnswerLost,
    /// The call is dropped after so many polls.
    Dropped(usize),
}

/// Evidence that was sent, for a thief to send again.
#[derive(Clone, Debug)]
pub(super) struct Sent {
    pub(super) holder: usize,
    pub(super) call: Call,
    pub(super) presented: Presented,
    pub(super) body: Value,
}

pub(super) struct Run<'a> {
    pub(super) ground: &'a mut Ground,
    pub(super) model: Model,
    pub(super) holders: Vec<Holder>,
    pub(super) requests: Vec<Request>,
    pub(super) sent: Vec<Sent>,
    pub(super) issued: Vec<Issued>,
    /// The serial numbers that have a device certificate.
    pub(super) devices: BTreeSet<String>,
    pub(super) trace: Vec<String>,
    /// Whether calls may be dropped. How far a dropped call came is up to the database, too, and not to the seed alone.
    pub(super) drops_calls: bool,
    now: OffsetDateTime,
    /// Makes the names of this run's machines unlike those of any other run.
    pub(super) name: String,
}

impl<'a> Run<'a> {
    pub(super) fn new(ground: &'a mut Ground, seed: u64) -> Self {
        let mut dice = Dice::new(!seed);
        for replica in &mut ground.replicas {
            replica.skew = dice.pick(&[
                Duration::ZERO,
                Duration::ZERO,
                Duration::seconds(20),
                Duration::seconds(-20),
                Duration::hours(2),
                Duration::hours(-2),
            ]);
        }
        let trace = vec![format!(
            "clocks are off by {:?}",
            ground
                .replicas
                .iter()
                .map(|replica| replica.skew.whole_seconds())
                .collect::<Vec<_>>()
        )];
        let skews = ground.replicas.iter().map(|replica| replica.skew.abs());
        let model = Model {
            clocks_agree: skews.max() < Some(Duration::minutes(1)),
            ..Model::default()
        };
        Self {
            ground,
            model,
            holders: Vec::new(),
            requests: Vec::new(),
            sent: Vec::new(),
            issued: Vec::new(),
            devices: BTreeSet::new(),
            trace,
            drops_calls: true,
            now: BEGINNING,
            name: Uuid::new_v4().simple().to_string(),
        }
    }

    /// Carries out the steps, and checks the books every few steps and at the end.
    pub(super) async fn all(&mut self, steps: &[Step]) -> Checked {
        for (place, step) in steps.iter().enumerate() {
            if place % STEPS_BETWEEN_BOOKS == 0 {
                self.check_books().await?;
            }
            // Nonces of one moment are of one order.
            self.pass(Duration::milliseconds(10));
            self.trace.push(format!("{} {:?}", step.number, step.operation));
            self.step(step.operation, Dice::new(step.seed)).await?;
        }
        self.check_books().await
    }

    async fn check_books(&self) -> Checked {
        books::check(&self.ground.pool, &self.model).await?;
        books::check_devices(&self.ground.pool, &self.model, &self.devices).await
    }

    /// Removes what would reach into the next run.
    pub(super) async fn clean_up(&mut self) {
        for permission in std::mem::take(&mut self.model.permissions) {
            let path = format!("/v1/admin/permissions/{}?cascade=true", permission.id);
            let admin = Some(self.ground.admin.as_str());
            let call = self.ground.replicas[0].call(Method::DELETE, &path, admin, None);
            let answer = call.await;
            assert_eq!(answer.status, 204, "{answer:?}");
        }
        for serial_number in std::mem::take(&mut self.model.inventory) {
            let path = format!("/v1/admin/inventory/{serial_number}");
            let answer = self.admin(0, Method::DELETE, &path, None).await;
            assert!(answer.is_success(), "{answer:?}");
        }
    }

    async fn step(&mut self, operation: Operation, mut dice: Dice) -> Checked {
        let dice = &mut dice;
        match operation {
            Operation::CreateToken => self.create_token(dice).await,
            Operation::Enroll => self.enroll_new(dice).await,
            Operation::RepeatEnrollment => self.repeat_enrollment(dice).await,
            Operation::CheckIn => self.check_in(dice).await,
            Operation::Renew => self.renew(dice).await,
            Operation::Replay => self.replay(dice).await,
            Operation::ChangeGrants => self.change_grants(dice).await,
            Operation::Quarantine | Operation::Release | Operation::Revoke => self.decide(operation, dice).await,
            Operation::PassTime => {
                self.pass_time(dice);
                Ok(())
            }
            Operation::RestartReplica => {
                let replica = self.replica(dice);
                self.ground.replicas[replica].restart().await;
                Ok(())
            }
            Operation::RaceRevocation => self.race_revocation(dice).await,
            Operation::RaceReplay => self.race_replay(dice).await,
            Operation::Rotate => self.rotate(dice).await,
            Operation::CopyKey => {
                self.copy_key(dice);
                Ok(())
            }
            Operation::RestoreState => {
                self.restore_state(dice);
                Ok(())
            }
            Operation::UseOldKey => self.use_old_key(dice).await,
            Operation::DecideRequest => self.decide_request(dice).await,
            Operation::Open => self.open(dice).await,
            Operation::ApproveKey => self.approve_key(dice).await,
            Operation::RevokeCertificate => self.revoke_certificate(dice).await,
            Operation::RevokeToken => self.revoke_token(dice).await,
            Operation::ChangeInventory => self.change_inventory(dice).await,
            Operation::Attest => self.attest(dice).await,
            Operation::Introspect => self.introspect(dice).await,
        }
    }

    pub(super) fn note(&mut self, line: String) {
        self.trace.push(format!("    {line}"));
    }

    pub(super) fn pass(&mut self, time: Duration) {
        self.now += time;
        for replica in &self.ground.replicas {
            replica.set(self.now);
        }
    }

    pub(super) fn now(&self) -> OffsetDateTime {
        self.now
    }

    fn pass_time(&mut self, dice: &mut Dice) {
        let to_an_end = self.time_to_the_end_of_a_certificate(dice);
        let time = dice.pick(&[
            to_an_end,
            Duration::seconds(30),
            Duration::minutes(6),
            Duration::hours(3),
            Duration::days(2),
            Duration::days(8),
            Duration::days(40),
            Duration::days(100),
        ]);
        // The issuing CA's certificate outlives every run.
        if self.now + time < BEGINNING + Duration::days(300) {
            self.pass(time);
            self.note(format!("{} minutes pass", time.whole_minutes()));
        }
    }

    /// The time until a moment at which a grant would outlive the certificate of some machine, by the right clock.
    fn time_to_the_end_of_a_certificate(&self, dice: &mut Dice) -> Duration {
        let holder = self.known_holder(dice);
        let key = holder.and_then(|holder| self.model.key(self.holders[holder].key()));
        let end = key
            .and_then(|key| key.certificate())
            .map(|certificate| certificate.not_after);
        let time = end.map_or(Duration::ZERO, |end| end - Duration::minutes(5) - self.now);
        time.max(Duration::ZERO)
    }

    pub(super) fn replica(&self, dice: &mut Dice) -> usize {
        dice.below(self.ground.replicas.len())
    }

    /// Mostly answered, because otherwise the run would make no progress.
    pub(super) fn fate(&self, dice: &mut Dice) -> Fate {
        match dice.below(10) {
            0 => Fate::AnswerLost,
            1 | 2 => {
                let polls = dice.below(MOST_POLLS);
                if self.drops_calls {
                    Fate::Dropped(polls)
                } else {
                    Fate::Answered
                }
            }
            _ => Fate::Answered,
        }
    }

    /// Any holder whose key the model knows.
    pub(super) fn known_holder(&self, dice: &mut Dice) -> Option<usize> {
        let known: Vec<usize> = (0..self.holders.len())
            .filter(|holder| self.model.key(self.holders[*holder].key()).is_some())
            .collect();
        dice.pick_any(&known)
    }

    pub(super) fn any_machine(&self, dice: &mut Dice) -> Option<Uuid> {
        let machines: Vec<Uuid> = self.model.machines.keys().copied().collect();
        dice.pick_any(&machines)
    }

    pub(super) async fn admin(&self, replica: usize, method: Method, path: &str, body: Option<&Value>) -> Answer {
        let admin = Some(self.ground.admin.as_str());
        self.ground.replicas[replica].call(method, path, admin, body).await
    }

    /// Calls for a holder until a nonce is accepted. `None` if the call was dropped.
    ///
    /// The model does not know the answer yet.
    pub(super) async fn exchange(
        &mut self,
        holder: usize,
        replica: usize,
        call: &Call,
        fate: Fate,
    ) -> Checked<Option<(Presented, Answer)>> {
        for _ in 0..NONCES {
            let (presented, body) = self.prepare(holder, replica, call).await;
            let sending = self.ground.replicas[replica].call(Method::POST, call.path(), None, Some(&body));
            let polls = match fate {
                Fate::Dropped(polls) => polls,
                Fate::Answered | Fate::AnswerLost => usize::MAX,
            };
            let answer = cut_off(sending, polls).await;
            self.sent.push(Sent {
                holder,
                call: call.clone(),
                presented: presented.clone(),
                body,
            });
            let Some(answer) = answer else {
                self.learn_of_dropped(&presented).await;
                self.note(format!("{} by {} is dropped", call.path(), self.holders[holder].name));
                return Ok(None);
            };
            let name = &self.holders[holder].name;
            self.note(format!(
                "{} by {name} at replica {replica}: {}",
                call.path(),
                answer.short()
            ));
            if answer.problem() == "bad-nonce" {
                self.holders[holder].nonce = answer.nonce;
                continue;
            }
            if fate == Fate::Answered {
                self.holders[holder].keep(&answer);
            }
            return Ok(Some((presented, answer)));
        }
        violation("a fresh nonce is accepted", format!("{NONCES} nonces were refused"))
    }

    /// Evidence with the nonce of the last response, or with a new one of this replica.
    pub(super) async fn prepare(&mut self, holder: usize, replica: usize, call: &Call) -> (Presented, Value) {
        let at_hand = self.holders[holder].nonce.take();
        let replicas = &self.ground.replicas;
        // With clocks that differ, a fresh nonce may be older than the last one used.
        let is_fresh = at_hand.is_none() && replicas.iter().all(|replica| replica.skew.is_zero());
        let nonce = match at_hand {
            Some(nonce) => nonce,
            None => {
                let asked = replicas[replica].call(Method::GET, "/v1/nonce", None, None);
                asked.await.nonce.unwrap()
            }
        };
        let claims = self.holders[holder].claims(call, &nonce);
        let body = self.holders[holder].body(call, &claims);
        let presented = Presented {
            key: self.holders[holder].key(),
            claims,
            at: self.ground.replicas[replica].now(),
            is_fresh,
        };
        (presented, body)
    }

    /// A call whose response was lost. The record shows whether it quarantined the machine.
    async fn learn_of_dropped(&mut self, presented: &Presented) {
        self.settle().await;
        let Some(machine) = self.model.key(presented.key).map(|key| key.machine) else {
            return;
        };
        let is_active = self.model.machine(machine).status == Status::Active;
        let record = self
            .admin(0, Method::GET, &format!("/v1/admin/machines/{machine}"), None)
            .await;
        if !is_active || record.text("status") != Some("quarantined") {
            self.model.learn_of_unknown(presented);
        } else if self.model.copy_is_caught(presented).1 && self.model.is_superseded(presented) {
            self.model.caught(presented);
        } else {
            self.model.mismatched(presented);
        }
        self.learn_of_ended_opening(presented).await;
    }

    /// The events show whether evidence whose fate is unknown ended an opening of the record.
    pub(super) async fn learn_of_ended_opening(&mut self, presented: &Presented) {
        let machine = self.model.key(presented.key).unwrap().machine;
        let ended = books::ended_openings(&self.ground.pool, machine).await;
        if ended > self.model.ended_openings(machine) {
            self.model.end_decided_opening(machine, presented.at);
        }
    }

    /// Waits until nothing of a dropped call is under way in the database.
    pub(super) async fn settle(&self) {
        let busy = "SELECT count(*) FROM pg_stat_activity
                    WHERE datname = current_database() AND state <> 'idle' AND pid <> pg_backend_pid()";
        loop {
            tokio::task::yield_now().await;
            let busy: i64 = sqlx::query_scalar(busy).fetch_one(&self.ground.pool).await.unwrap();
            if busy == 0 {
                return;
            }
        }
    }

    pub(super) fn store(dice: &mut Dice) -> KeyStoreKind {
        dice.pick(&[KeyStoreKind::Software, KeyStoreKind::SecureEnclave])
    }

    pub(super) fn reason(dice: &mut Dice) -> Value {
        json!({"reason": format!("reason {}", dice.roll())})
    }
}
