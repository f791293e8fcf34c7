//! The URLs of ACME's resources, built and parsed in one place: a client signs the URL of each request.

use uuid::Uuid;

pub(crate) const DIRECTORY: &str = "/acme/directory";
pub(crate) const NEW_NONCE: &str = "/acme/new-nonce";
pub(crate) const NEW_ACCOUNT: &str = "/acme/new-account";
pub(crate) const NEW_ORDER: &str = "/acme/new-order";
pub(crate) const REVOKE_CERTIFICATE: &str = "/acme/revoke-cert";
pub(crate) const KEY_CHANGE: &str = "/acme/key-change";

const ACCOUNT: &str = "/acme/account/";

/// Builds URLs under the server's public URL.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Urls<'a>(pub(crate) &'a str);

impl Urls<'_> {
    pub(crate) fn of(self, path: &str) -> String {
        format!("{}{path}", self.0)
    }

    pub(crate) fn account(self, id: Uuid) -> String {
        format!("{}{ACCOUNT}{id}", self.0)
    }

    pub(crate) fn orders(self, account_id: Uuid) -> String {
        format!("{}{ACCOUNT}{account_id}/orders", self.0)
    }

    pub(crate) fn order(self, id: Uuid) -> String {
        format!("{}/acme/order/{id}", self.0)
    }

    pub(crate) fn finalize(self, id: Uuid) -> String {
        format!("{}/acme/order/{id}/finalize", self.0)
    }

    pub(crate) fn authorization(self, id: Uuid) -> String {
        format!("{}/acme/authorization/{id}", self.0)
    }

    pub(crate) fn challenge(self, id: Uuid) -> String {
        format!("{}/acme/challenge/{id}", self.0)
    }

    pub(crate) fn certificate(self, id: Uuid) -> String {
        format!("{}/acme/certificate/{id}", self.0)
    }

    /// The account in a URL. Only the exact form that the server gave out is accepted: a `kid` is compared as a string.
    pub(crate) fn account_id(self, url: &str) -> Option<Uuid> {
        let id = url.strip_prefix(self.0)?.strip_prefix(ACCOUNT)?.parse().ok()?;
        (self.account(id) == url).then_some(id)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_account_is_found_only_by_its_exact_url() {
        let urls = Urls("https://assay.example.com");
        let id = Uuid::from_u128(0x0191_0000_0000_7000_8000_0000_0000_0abc);
        let url = urls.account(id);
        assert_eq!(urls.account_id(&url), Some(id));
        for other in [
            url.to_uppercase(),
            url.replace("https", "http"),
            url.replace('-', ""),
            format!("{url}/orders"),
            id.to_string(),
            String::new(),
        ] {
            assert_eq!(urls.account_id(&other), None, "{other}");
        }
    }
}
