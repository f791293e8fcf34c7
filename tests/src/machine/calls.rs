//! A machine's calls, and what it remembers of the responses.

use http::Method;
use reqwest::RequestBuilder;
use serde_json::Value;

use super::Machine;
use crate::answer::Answer;
use crate::api::Called;

impl Machine {
    /// Enrolls.
    pub async fn enroll(&self, server: &impl Called, token: Option<&str>) -> Answer {
        let nonce = self.take_nonce(server).await;
        self.remember(Answer::to(self.enrollment(server, token, &nonce)).await)
    }

    /// Checks in.
    pub async fn check_in(&self, server: &impl Called) -> Answer {
        let nonce = self.take_nonce(server).await;
        self.remember(Answer::to(self.check_in_with(server, &nonce)).await)
    }

    /// Renews with its key.
    pub async fn renew(&self, server: &impl Called) -> Answer {
        let nonce = self.take_nonce(server).await;
        self.remember(Answer::to(self.renewal(server, &nonce)).await)
    }

    /// Requests a certificate for its next key, signed with its current key.
    pub async fn rotate_to(&self, server: &impl Called, next: &Self) -> Answer {
        let nonce = self.take_nonce(server).await;
        let body = self.renew_body(server.api().audience(), &next.csr(), &nonce);
        self.remember(Answer::to(post(server, "/v1/renew", &body)).await)
    }

    /// The same with an enrollment token for the key in the CSR: the next one, or its own.
    pub async fn renew_with_token(&self, server: &impl Called, certified: &Self, token: &str) -> Answer {
        let nonce = self.take_nonce(server).await;
        let mut body = self.renew_body(server.api().audience(), &certified.csr(), &nonce);
        body["token"] = Value::from(token);
        self.remember(Answer::to(post(server, "/v1/renew", &body)).await)
    }

    /// The request of an enrollment with this nonce.
    pub fn enrollment(&self, server: &impl Called, token: Option<&str>, nonce: &str) -> RequestBuilder {
        post(
            server,
            "/v1/enroll",
            &self.enroll_body(server.api().audience(), token, nonce),
        )
    }

    /// The request of a check-in with this nonce.
    pub fn check_in_with(&self, server: &impl Called, nonce: &str) -> RequestBuilder {
        post(
            server,
            "/v1/check-in",
            &self.check_in_body(server.api().audience(), nonce),
        )
    }

    /// The request of a renewal with this nonce.
    pub fn renewal(&self, server: &impl Called, nonce: &str) -> RequestBuilder {
        post(
            server,
            "/v1/renew",
            &self.renew_body(server.api().audience(), &self.csr(), nonce),
        )
    }

    /// The nonce of the last response. `None` if it was used.
    #[must_use]
    pub fn nonce_at_hand(&self) -> Option<String> {
        self.remembered(|remembered| remembered.nonce.clone())
    }

    /// Forgets the nonce of the last response, as an agent does when it restarts.
    pub fn forget_nonce(&self) {
        self.remembered(|remembered| remembered.nonce = None);
    }

    /// Checks in, and loses the response.
    pub async fn check_in_and_lose_the_answer(&self, server: &impl Called) -> Answer {
        let nonce = self.take_nonce(server).await;
        Answer::to(self.check_in_with(server, &nonce)).await
    }

    async fn take_nonce(&self, server: &impl Called) -> String {
        let at_hand = self.remembered(|remembered| remembered.nonce.take());
        server.next_nonce(at_hand).await
    }

    fn remember(&self, answer: Answer) -> Answer {
        self.remembered(|remembered| {
            remembered.nonce = Some(answer.nonce().to_owned());
            if answer.status < 300 {
                let continuity = answer.json()["continuity"].as_str().map(str::to_owned);
                remembered.continuity = continuity.or(remembered.continuity.take());
                let id = answer.json()["machine_id"].as_str().map(|id| id.parse().unwrap());
                remembered.id = id.or(remembered.id);
            }
        });
        answer
    }
}

fn post(server: &impl Called, path: &str, body: &Value) -> RequestBuilder {
    server.api().request(Method::POST, path).json(body)
}
