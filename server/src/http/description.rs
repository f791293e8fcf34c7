//! Completes the OpenAPI document with what is the same for every operation. Generated clients need unique operation
//! ids, named schemas and the right media types.

use std::collections::BTreeMap;

use utoipa::openapi::{
    OpenApi, Ref, RefOr, Schema, Server,
    content::Content,
    path::Operation,
    response::Response,
    schema::{ArrayItems, Components},
    tag::Tag,
};

use super::operation::{MACHINE, PUBLIC, operations, role};

const JSON: &str = "application/json";
const PROBLEM_JSON: &str = "application/problem+json";
/// The statuses of problems, as the document names them.
const PROBLEMS: &str = "4XX";
/// The name of a page's schema begins so, and the name of its items' schema follows.
const PAGE: &str = "Page_";

/// What the operations of each tag are about.
const TAGS: [(&str, &str); 19] = [
    (
        "API keys",
        "The keys with which administrators and services call this API.",
    ),
    ("Agents", "What the agents on the machines call."),
    (
        "Audiences",
        "Relying parties whose grant tokens differ from the usual ones.",
    ),
    ("Audit", "Who changed what, as a chain of hashes."),
    ("Background work", "The periodic work of the server."),
    ("Certificates", "The certificates that the server issued."),
    ("Enrollment tokens", "The secrets with which machines enroll."),
    ("Enrollments", "Keys that wait, or waited, for a decision."),
    ("Events", "What happened to machines and to the server."),
    (
        "Grants",
        "Which machines have which permissions, under which conditions.",
    ),
    ("Health", "For supervisors and load balancers."),
    ("Inventory", "The serial numbers that belong to the fleet."),
    ("MDM", "What an MDM reports."),
    ("Machines", "The records of machines, and decisions about them."),
    ("Permissions", "What a machine may do at a relying party."),
    ("Policy", "Permissions, grants and audiences as one document."),
    (
        "Relying parties",
        "What services need to verify certificates and grant tokens.",
    ),
    ("Stats", "Counts over the fleet."),
    ("Webhooks", "Receivers of events, and their deliveries."),
];

pub(super) fn complete(mut document: OpenApi) -> OpenApi {
    for item in document.paths.paths.values_mut() {
        operations(item).for_each(complete_operation);
    }
    if let Some(components) = &mut document.components {
        name_items_of_pages(components);
    }
    let described: BTreeMap<&str, &str> = TAGS.into_iter().collect();
    let used = document
        .paths
        .paths
        .values_mut()
        .flat_map(|item| operations(item).collect::<Vec<_>>());
    let mut names: Vec<String> = used.filter_map(|operation| operation.tags.clone()).flatten().collect();
    names.sort();
    names.dedup();
    let tags = names.into_iter().map(|name| {
        let mut tag = Tag::new(&name);
        tag.description = described.get(name.as_str()).map(|&description| description.to_owned());
        tag
    });
    document.tags = Some(tags.collect());
    let mut server = Server::new("/");
    server.description = Some("The server that this document was read from".to_owned());
    document.servers = Some(vec![server]);
    document
}

fn complete_operation(operation: &mut Operation) {
    let tag = operation.tags.as_ref().and_then(|tags| tags.first());
    if let (Some(tag), Some(id)) = (tag, &operation.operation_id) {
        operation.operation_id = Some(format!("{}_{id}", tag.to_lowercase().replace(' ', "_")));
    }
    let caller = match role(operation) {
        PUBLIC => "Needs no credentials.".to_owned(),
        MACHINE => "Needs no credentials but evidence in the body, which the machine's key signed.".to_owned(),
        role => format!("Needs an API key with the role `{role}`, or one that includes it."),
    };
    let description = operation.description.take().filter(|text| !text.is_empty());
    operation.description = Some(match description {
        Some(text) => format!("{text}\n\n{caller}"),
        None => caller,
    });
    // An empty list says that none is needed. Without one, the document would leave it open.
    operation.security.get_or_insert_default();
    let responses = &mut operation.responses.responses;
    responses
        .entry(PROBLEMS.to_owned())
        .or_insert_with(|| RefOr::T(problem_response()));
    for (status, response) in responses {
        if let RefOr::T(response) = response {
            complete_response(status, response);
        }
    }
}

fn problem_response() -> Response {
    let mut response = Response::new("");
    let content = Content::new(Some(Ref::from_schema_name("Problem")));
    response.content.insert(JSON.to_owned(), content);
    response
}

fn complete_response(status: &str, response: &mut Response) {
    if !status.starts_with('2')
        && let Some(content) = response.content.shift_remove(JSON)
    {
        response.content.insert(PROBLEM_JSON.to_owned(), content);
    }
    if response.description.is_empty() {
        let description = match status {
            "200" => "The result.",
            "201" => "It was created.",
            "202" => "It was accepted and is not finished.",
            "204" => "It was done. The response has no body.",
            _ => "A problem (RFC 9457).",
        };
        description.clone_into(&mut response.description);
    }
}

/// The library writes the items of a page out in full. A reference gives them the same type in every list.
fn name_items_of_pages(components: &mut Components) {
    let mut named = Vec::new();
    for (name, schema) in &mut components.schemas {
        let (Some(item), RefOr::T(Schema::Object(page))) = (name.strip_prefix(PAGE), schema) else {
            continue;
        };
        if let Some(RefOr::T(Schema::Array(items))) = page.properties.get_mut("items") {
            let reference = ArrayItems::RefOrSchema(Box::new(RefOr::Ref(Ref::from_schema_name(item))));
            if let ArrayItems::RefOrSchema(inline) = std::mem::replace(&mut items.items, reference) {
                named.push((item.to_owned(), *inline));
            }
        }
    }
    for (name, schema) in named {
        components.schemas.entry(name).or_insert(schema);
    }
}
