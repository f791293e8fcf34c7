//! The operations of `/openapi.json`. Tests of all operations thus cover new ones automatically.

use assay_tests::in_process::InProcess;
use reqwest::Method;
use serde_json::Value;

/// One operation.
#[derive(Debug, Clone)]
pub(crate) struct Operation {
    pub(crate) method: Method,
    /// The path, with `{id}` in it.
    pub(crate) path: String,
    /// Whether the document requires an API key.
    pub(crate) needs_key: bool,
    /// Its callers: `x-assay-role`. Empty if the document has none.
    pub(crate) role: String,
    /// The names of the parameters in its path.
    pub(crate) path_parameters: Vec<String>,
    /// The names of the parameters in its query.
    pub(crate) query_parameters: Vec<String>,
    /// The schema of its body, references resolved.
    pub(crate) body: Option<Value>,
    /// The statuses of success and their media types.
    pub(crate) successes: Vec<(u16, Option<String>)>,
}

impl Operation {
    /// Whether its response is an endless stream.
    pub(crate) fn is_endless(&self) -> bool {
        let is_stream = |media_type: &Option<String>| media_type.as_deref() == Some("text/event-stream");
        self.successes.iter().any(|(_, media_type)| is_stream(media_type))
    }

    /// Its path, with every parameter replaced.
    pub(crate) fn path_with(&self, value: &str) -> String {
        self.path_parameters.iter().fold(self.path.clone(), |path, name| {
            path.replace(&format!("{{{name}}}"), value)
        })
    }

    /// Method and path, in the form of the table of callers.
    pub(crate) fn name(&self) -> String {
        format!("{} {}", self.method, self.path)
    }
}

/// All operations in the server's document.
pub(crate) async fn operations(server: &InProcess) -> Vec<Operation> {
    let answer = server.send(server.request(Method::GET, "/openapi.json")).await;
    assert_eq!(answer.status, 200, "{answer}");
    let document = answer.json();
    let mut operations = Vec::new();
    for (path, methods) in document["paths"].as_object().unwrap() {
        for (method, operation) in methods.as_object().unwrap() {
            let method = Method::from_bytes(method.to_uppercase().as_bytes()).unwrap();
            operations.push(read(&document, path, method, operation));
        }
    }
    assert!(operations.len() > 30, "{operations:?}");
    operations
}

fn read(document: &Value, path: &str, method: Method, operation: &Value) -> Operation {
    let parameters = |place: &str| -> Vec<String> {
        let all = operation["parameters"].as_array().into_iter().flatten();
        let here = all.filter(|parameter| parameter["in"] == place);
        here.map(|parameter| parameter["name"].as_str().unwrap().to_owned())
            .collect()
    };
    let successes = operation["responses"]
        .as_object()
        .unwrap()
        .iter()
        .filter_map(|(status, response)| {
            let status: u16 = status.parse().ok().filter(|status| *status < 300)?;
            let media_types = response["content"].as_object();
            let media_type = media_types.map(|media_types| media_types.keys().next().unwrap().clone());
            Some((status, media_type))
        });
    let body = &operation["requestBody"]["content"]["application/json"]["schema"];
    Operation {
        method,
        path: path.to_owned(),
        needs_key: operation["security"]
            .as_array()
            .is_some_and(|schemes| !schemes.is_empty()),
        role: operation["x-assay-role"].as_str().unwrap_or_default().to_owned(),
        path_parameters: parameters("path"),
        query_parameters: parameters("query"),
        body: (!body.is_null()).then(|| resolve(document, body)),
        successes: successes.collect(),
    }
}

/// The schema with its references resolved.
fn resolve(document: &Value, schema: &Value) -> Value {
    match schema {
        Value::Object(members) => {
            if let Some(reference) = members.get("$ref").and_then(Value::as_str) {
                let pointer = reference.strip_prefix('#').unwrap();
                return resolve(document, document.pointer(pointer).unwrap());
            }
            let members = members
                .iter()
                .map(|(name, member)| (name.clone(), resolve(document, member)));
            Value::Object(members.collect())
        }
        Value::Array(items) => items.iter().map(|item| resolve(document, item)).collect(),
        other => other.clone(),
    }
}

/// Whether a schema allows values of this JSON type, such as `"string"` or `"null"`.
pub(crate) fn allows(schema: &Value, json_type: &str) -> bool {
    if let Some(alternatives) = schema["oneOf"].as_array() {
        return alternatives.iter().any(|alternative| allows(alternative, json_type));
    }
    match &schema["type"] {
        Value::String(one) => one == json_type || (one == "number" && json_type == "integer"),
        Value::Array(several) => several.iter().any(|one| one == json_type),
        _ => true,
    }
}
