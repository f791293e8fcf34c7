//! Metrics of transactions, one series for each name of `Name`.

use std::time::Duration;

use prometheus_client::{
    metrics::{counter::Counter, family::Family, histogram::Histogram},
    registry::Registry,
};

use super::metrics::{Labels, counted, few_seconds, timed};

assay_protocol::words! {
    /// The transactions that the server runs, as metrics and logs name them.
    pub(crate) enum Name {
        AnnounceEndOfApiKeys = "announce_end_of_api_keys",
        AnnounceEvents = "announce_events",
        AnswerAcmeChallenge = "answer_acme_challenge",
        ApplyPolicy = "apply_policy",
        AskForAttestation = "ask_for_attestation",
        BindAppleAttestation = "bind_apple_attestation",
        Bootstrap = "bootstrap",
        ChangeAcmeAccountKey = "change_acme_account_key",
        ChangeMachineStatus = "change_machine_status",
        CheckIn = "check_in",
        CreateAcmeOrder = "create_acme_order",
        CreateApiKey = "create_api_key",
        CreateAudience = "create_audience",
        CreateEnrollmentToken = "create_enrollment_token",
        CreateGrant = "create_grant",
        CreatePermission = "create_permission",
        CreateWebhook = "create_webhook",
        DeactivateAcmeAccount = "deactivate_acme_account",
        DecideEnrollment = "decide_enrollment",
        DecideMachineEnrollment = "decide_machine_enrollment",
        DeleteAudience = "delete_audience",
        DeleteGrant = "delete_grant",
        DeleteMachine = "delete_machine",
        DeletePermission = "delete_permission",
        DeleteWebhook = "delete_webhook",
        DisableWebhook = "disable_webhook",
        EndApiKey = "end_api_key",
        Enroll = "enroll",
        ExpireEnrollments = "expire_enrollments",
        FinalizeAcmeOrder = "finalize_acme_order",
        ImportInventory = "import_inventory",
        InstallCa = "install_ca",
        InstallList = "install_list",
        LapseAttestations = "lapse_attestations",
        LearnMdmDevice = "learn_mdm_device",
        NoteLiveness = "note_liveness",
        OpenAcmeAccount = "open_acme_account",
        OpenMachine = "open_machine",
        PatchMachine = "patch_machine",
        PrepareKey = "prepare_key",
        RecordAttestationCommand = "record_attestation_command",
        RecordDelivery = "record_delivery",
        RecordFailedDelivery = "record_failed_delivery",
        RecordVerdict = "record_verdict",
        RefuseAcmeOrder = "refuse_acme_order",
        RefuseAttestation = "refuse_attestation",
        RemoveExpired = "remove_expired",
        RemoveFromInventory = "remove_from_inventory",
        Renew = "renew",
        ReplaceAudience = "replace_audience",
        ReplaceGrant = "replace_grant",
        ReplacePermission = "replace_permission",
        RequestCa = "request_ca",
        RevokeApiKey = "revoke_api_key",
        RevokeCertificate = "revoke_certificate",
        RevokeDeviceCertificate = "revoke_device_certificate",
        RevokeEnrollmentToken = "revoke_enrollment_token",
        RotateKeys = "rotate_keys",
        SealAudit = "seal_audit",
        SignRevocationList = "sign_revocation_list",
        TestWebhook = "test_webhook",
        WithdrawCa = "withdraw_ca",
    }
}

/// Metrics of transactions.
pub struct TransactionMetrics {
    ended: Family<Labels<2>, Counter>,
    seconds: Family<Labels<1>, Histogram, fn() -> Histogram>,
    retries: Family<Labels<1>, Counter>,
}

/// How a transaction ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum TransactionEnd {
    /// Its changes are in the database.
    Committed,
    /// The operation decided against it, and nothing was changed.
    Refused,
    /// The database failed, or the transaction collided with others until its last try.
    Failed,
}

impl TransactionMetrics {
    /// A transaction collided with another one and is tried again.
    pub(crate) fn collided(&self, name: Name) {
        self.retries.get_or_create(&named(name)).inc();
    }

    /// A transaction ended, `elapsed` after its first try began.
    pub(crate) fn ended(&self, name: Name, end: TransactionEnd, elapsed: Duration) {
        self.ended.get_or_create(&ended(name, end)).inc();
        self.seconds.get_or_create(&named(name)).observe(elapsed.as_secs_f64());
    }

    pub(super) fn register(to: &mut Registry) -> Self {
        let ended: Family<Labels<2>, Counter> = counted(to, "transactions", "Transactions, by how they ended");
        // An alert on a rate needs the series to be there before the first failure.
        for name in Name::ALL {
            drop(ended.get_or_create(&self::ended(name, TransactionEnd::Failed)));
        }
        Self {
            ended,
            seconds: timed(
                to,
                "transaction_duration",
                "From the first try to the last commit or rollback",
                Family::new_with_constructor(few_seconds),
            ),
            retries: counted(to, "transaction_retries", "Tries that collided and were repeated"),
        }
    }
}

impl TransactionEnd {
    const fn as_str(self) -> &'static str {
        match self {
            Self::Committed => "committed",
            Self::Refused => "refused",
            Self::Failed => "failed",
        }
    }
}

/// The label with the name.
fn named(name: Name) -> Labels<1> {
    [("transaction", name.as_str())]
}

/// The labels with the name and the end.
fn ended(name: Name, end: TransactionEnd) -> Labels<2> {
    [("transaction", name.as_str()), ("result", end.as_str())]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_transaction_is_counted_by_its_name_and_its_end() {
        let metrics = crate::telemetry::Metrics::new();
        let elapsed = Duration::from_millis(3);
        metrics.transactions.collided(Name::Enroll);
        metrics
            .transactions
            .ended(Name::Enroll, TransactionEnd::Committed, elapsed);
        metrics
            .transactions
            .ended(Name::Enroll, TransactionEnd::Refused, elapsed);
        let text = metrics.encode();
        for line in [
            r#"assay_transactions_total{transaction="enroll",result="committed"} 1"#,
            r#"assay_transactions_total{transaction="enroll",result="refused"} 1"#,
            r#"assay_transactions_total{transaction="enroll",result="failed"} 0"#,
            r#"assay_transactions_total{transaction="renew",result="failed"} 0"#,
            r#"assay_transaction_retries_total{transaction="enroll"} 1"#,
            r#"assay_transaction_duration_seconds_count{transaction="enroll"} 2"#,
        ] {
            assert!(text.lines().any(|found| found == line), "{line}\nin\n{text}");
        }
    }
}
