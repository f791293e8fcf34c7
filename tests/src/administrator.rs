//! An administrator, and the calls that most tests begin with.

use http::Method;
use serde_json::{Value, json};
use uuid::Uuid;

use crate::answer::Answer;
use crate::api::Api;
use crate::machine::Machine;

/// A caller of the admin API, with its API key.
#[derive(Clone, Debug)]
pub struct Administrator {
    api: Api,
    key: String,
}

/// A created enrollment token.
#[derive(Clone, Debug)]
pub struct Token {
    /// Its id.
    pub id: String,
    /// The secret that a machine sends.
    pub secret: String,
}

impl Administrator {
    /// Calls this server with this API key.
    #[must_use]
    pub fn new(api: Api, key: &str) -> Self {
        Self {
            api,
            key: key.to_owned(),
        }
    }

    /// Sends any request. `path` is below `/v1/admin/`.
    pub async fn call(&self, method: Method, path: &str, body: Option<&Value>) -> Answer {
        let mut request = self
            .api
            .request(method, &format!("/v1/admin/{path}"))
            .bearer_auth(&self.key);
        if let Some(body) = body {
            request = request.json(body);
        }
        Answer::to(request).await
    }

    /// Reads a resource, which must exist.
    pub async fn get(&self, path: &str) -> Value {
        self.call(Method::GET, path, None).await.expect(200).json()
    }

    /// Creates a resource by POST.
    pub async fn create(&self, noun: &str, body: &Value) -> Value {
        self.call(Method::POST, noun, Some(body)).await.expect(201).json()
    }

    /// Deletes a resource, which must exist.
    pub async fn delete(&self, path: &str) {
        let _deleted = self.call(Method::DELETE, path, None).await.expect(204);
    }

    /// Creates an enrollment token; by default for one machine, within an hour.
    pub async fn token(&self, body: Value) -> Token {
        let token = self.create("enrollment-tokens", &token_of(body)).await;
        Token {
            id: text(&token, "id"),
            secret: text(&token, "token"),
        }
    }

    /// How often a token has been used.
    pub async fn uses(&self, token: &Token) -> u64 {
        self.get(&format!("enrollment-tokens/{}", token.id)).await["uses"]
            .as_u64()
            .unwrap()
    }

    /// Enrolls a new machine with a token of its own.
    pub async fn enrolled(&self, api: &Api) -> Machine {
        let machine = Machine::new();
        let token = self.token(json!({})).await;
        let _enrolled = machine.enroll(api, Some(&token.secret)).await.expect(201);
        machine
    }

    /// Creates a permission for a new audience, and returns its id.
    pub async fn permission(&self, name: &str) -> String {
        let audience = format!("https://{}.example.com", Uuid::new_v4());
        text(
            &self
                .create("permissions", &json!({"audience": audience, "name": name}))
                .await,
            "id",
        )
    }

    /// Grants a permission to one machine, and returns the grant's id.
    pub async fn grant(&self, permission: &str, machine: &Machine, conditions: Value) -> String {
        let grant = json!({
            "permission_id": permission, "selector": {"machine_ids": [machine.id()]}, "conditions": conditions,
        });
        text(&self.create("grants", &grant).await, "id")
    }

    /// A machine's record.
    pub async fn machine(&self, id: Uuid) -> Value {
        self.get(&format!("machines/{id}")).await
    }

    /// Quarantines, releases, revokes, approves or denies a machine.
    pub async fn decide(&self, id: Uuid, decision: &str, reason: &str) -> Answer {
        let path = format!("machines/{id}/{decision}");
        self.call(Method::POST, &path, Some(&json!({"reason": reason}))).await
    }

    /// A pending enrollment.
    pub async fn pending(&self, enrollment: &str) -> Value {
        let waiting = items(self.get("enrollments?status=pending&limit=500").await);
        let found = waiting.into_iter().find(|waiting| waiting["id"] == enrollment);
        found.unwrap_or_else(|| panic!("enrollment {enrollment} is not pending"))
    }

    /// A machine's events, newest first.
    pub async fn events(&self, id: Uuid) -> Vec<Value> {
        items(self.get(&format!("machines/{id}/events")).await)
    }

    /// The kinds of a machine's events, newest first.
    pub async fn event_kinds(&self, id: Uuid) -> Vec<Value> {
        let events = self.events(id).await.into_iter();
        events.map(|mut event| event["kind"].take()).collect()
    }

    /// The audit entries of a resource, newest first.
    pub async fn audit(&self, resource: &str) -> Vec<Value> {
        items(self.get(&format!("audit?resource={resource}")).await)
    }
}

/// The body that creates an enrollment token. Members that `body` lacks are those for one machine and one hour.
#[must_use]
pub fn token_of(body: Value) -> Value {
    let mut token = json!({"description": "the tests", "expires_in_seconds": 3600, "max_uses": 1, "approval": "automatic", "allow_reenrollment": false});
    let Value::Object(body) = body else {
        panic!("not an object: {body}")
    };
    token.as_object_mut().unwrap().extend(body);
    token
}

/// A text member of a response.
///
/// # Panics
/// If the response has no such member.
#[must_use]
#[track_caller]
pub fn text(answer: &Value, member: &str) -> String {
    let text = answer[member].as_str();
    text.unwrap_or_else(|| panic!("no text {member:?} in {answer}"))
        .to_owned()
}

/// The items of a list.
///
/// # Panics
/// If the body is no list.
#[must_use]
#[track_caller]
pub fn items(mut list: Value) -> Vec<Value> {
    match list["items"].take() {
        Value::Array(items) => items,
        other => panic!("not a list: {other}"),
    }
}
