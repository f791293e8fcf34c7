//! What generated clients need of the OpenAPI document, beside the snapshot in `docs/openapi.json`.

use std::collections::BTreeSet;

use assay_tests::in_process::InProcess;
use reqwest::Method;
use serde_json::Value;

async fn document() -> Value {
    let server = InProcess::start().await;
    let answer = server.send(server.request(Method::GET, "/openapi.json")).await;
    let document = answer.expect(200).json();
    server.stop().await;
    document
}

/// Each operation with its name.
fn operations(document: &Value) -> Vec<(String, &Value)> {
    let mut operations = Vec::new();
    for (path, methods) in document["paths"].as_object().unwrap() {
        for (method, operation) in methods.as_object().unwrap() {
            operations.push((format!("{method} {path}"), operation));
        }
    }
    assert!(operations.len() > 70, "{}", operations.len());
    operations
}

fn is_text(value: &Value) -> bool {
    value.as_str().is_some_and(|text| !text.trim().is_empty())
}

#[tokio::test]
async fn every_operation_of_the_document_has_an_id_of_its_own_a_description_and_its_security() {
    let document = document().await;
    let mut ids = BTreeSet::new();
    let tags: BTreeSet<&str> = document["tags"]
        .as_array()
        .unwrap()
        .iter()
        .map(|tag| {
            assert!(is_text(&tag["description"]), "{tag}");
            tag["name"].as_str().unwrap()
        })
        .collect();
    let schemes: BTreeSet<&String> = document["components"]["securitySchemes"]
        .as_object()
        .unwrap()
        .keys()
        .collect();
    for (name, operation) in operations(&document) {
        let id = operation["operationId"].as_str().unwrap();
        assert!(ids.insert(id), "{name}: {id} is there twice");
        assert!(
            id.bytes().all(|byte| byte.is_ascii_lowercase() || byte == b'_'),
            "{name}: {id}"
        );
        assert!(
            is_text(&operation["summary"]) && is_text(&operation["description"]),
            "{name}"
        );
        let [tag] = operation["tags"].as_array().unwrap().as_slice() else {
            panic!("{name} has not one tag");
        };
        assert!(tags.contains(tag.as_str().unwrap()), "{name}: {tag}");
        let security = operation["security"]
            .as_array()
            .unwrap_or_else(|| panic!("{name}: no security"));
        let is_open = matches!(operation["x-assay-role"].as_str(), Some("anybody" | "machine"));
        assert_eq!(security.is_empty(), is_open, "{name}");
        for scheme in security.iter().flat_map(|scheme| scheme.as_object().unwrap().keys()) {
            assert!(schemes.contains(scheme), "{name}: {scheme}");
        }
    }
    assert!(is_text(&document["servers"][0]["url"]) && is_text(&document["info"]["description"]));
}

#[tokio::test]
async fn problems_have_their_media_type_in_the_document() {
    let document = document().await;
    for (name, operation) in operations(&document) {
        let responses = operation["responses"].as_object().unwrap();
        for (status, response) in responses {
            assert!(is_text(&response["description"]), "{name}: {status}");
            let content = response["content"].as_object().into_iter().flatten();
            for (media_type, content) in content {
                let is_problem = content["schema"]["$ref"] == "#/components/schemas/Problem";
                assert_eq!(is_problem, media_type == "application/problem+json", "{name}: {status}");
            }
        }
        let problem = &responses["4XX"]["content"]["application/problem+json"]["schema"]["$ref"];
        assert_eq!(problem, "#/components/schemas/Problem", "{name}");
    }
}

#[tokio::test]
async fn lists_of_the_document_have_named_items_and_limits() {
    let document = document().await;
    let mut lists = 0;
    for (name, operation) in operations(&document) {
        let parameters: Vec<&Value> = operation["parameters"].as_array().into_iter().flatten().collect();
        for parameter in &parameters {
            let (parameter_name, schema) = (parameter["name"].as_str().unwrap(), &parameter["schema"]);
            assert!(
                parameter["in"] == "path" || is_text(&parameter["description"]),
                "{name}: {parameter_name}"
            );
            match parameter_name {
                "limit" => {
                    assert_eq!(
                        (&schema["minimum"], &schema["maximum"]),
                        (&1.into(), &500.into()),
                        "{name}"
                    );
                    lists += 1;
                }
                "before" | "expires_before" => assert_eq!(schema["format"], "date-time", "{name}"),
                "id" => assert_eq!(schema["format"], "uuid", "{name}"),
                _ => {}
            }
        }
    }
    assert!(lists > 10, "{lists}");
    let schemas = document["components"]["schemas"].as_object().unwrap();
    let pages: Vec<_> = schemas.iter().filter(|(name, _)| name.starts_with("Page_")).collect();
    assert!(pages.len() > 10, "{}", pages.len());
    for (name, page) in pages {
        let item = page["properties"]["items"]["items"]["$ref"]
            .as_str()
            .unwrap_or_else(|| panic!("{name}: {page}"));
        assert!(schemas.contains_key(item.rsplit('/').next().unwrap()), "{name}: {item}");
    }
}
