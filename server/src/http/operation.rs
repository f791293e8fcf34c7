//! The role that each operation requires, for the OpenAPI document. It is derived from the handler's signature, which
//! is also the authorization: the two cannot differ.

use axum::routing::MethodRouter;
use serde_json::Value;
use utoipa::openapi::{
    OpenApi, Paths,
    path::{Operation, PathItem},
};
use utoipa_axum::router::UtoipaMethodRouter;

use super::authentication::{Authorized, RequiredRole};

/// The extension that names the lowest sufficient role of an operation, or who else may call it.
const EXTENSION: &str = "x-assay-role";

/// Operations without credentials.
pub(super) const PUBLIC: &str = "anybody";
/// Operations that require evidence signed by the machine's key.
pub(super) const MACHINE: &str = "machine";

/// A handler that checks a role before anything else.
pub(super) trait RequiresRole<Arguments> {
    const ROLE: &'static str;
}

macro_rules! requires_role {
    ($($argument:ident)+) => {
        impl<H, A, R: RequiredRole, $($argument),+> RequiresRole<(R, $($argument,)+)> for H
        where
            H: Fn(Authorized<R>, $($argument),+) -> A,
        {
            const ROLE: &'static str = R::NAME;
        }
    };
}

requires_role!(A1);
requires_role!(A1 A2);
requires_role!(A1 A2 A3);
requires_role!(A1 A2 A3 A4);
requires_role!(A1 A2 A3 A4 A5);

/// Like `utoipa_axum::routes`, for handlers of one path that require a role. The document then names the role.
macro_rules! routes {
    ($($handler:ident),+ $(,)?) => {
        $crate::http::operation::merged([$(
            $crate::http::operation::requires_role(utoipa_axum::routes!($handler), &$handler),
        )+])
    };
}
pub(super) use routes;

pub(super) fn requires_role<S, Arguments, H: RequiresRole<Arguments>>(
    (schemas, mut paths, methods): UtoipaMethodRouter<S>,
    _handler: &H,
) -> UtoipaMethodRouter<S> {
    describe(&mut paths, H::ROLE);
    (schemas, paths, methods)
}

pub(super) fn merged<S: Clone + 'static, const N: usize>(routes: [UtoipaMethodRouter<S>; N]) -> UtoipaMethodRouter<S> {
    let nothing = (Vec::new(), Paths::new(), MethodRouter::new());
    routes.into_iter().fold(
        nothing,
        |(mut schemas, mut paths, methods), (more_schemas, more_paths, more_methods)| {
            schemas.extend(more_schemas);
            paths.merge(more_paths);
            (schemas, paths, methods.merge(more_methods))
        },
    )
}

/// Describes who may call the operations whose handlers require no role.
pub(super) fn describe_others(mut document: OpenApi, who: &str) -> OpenApi {
    describe(&mut document.paths, who);
    document
}

/// Keeps an existing entry.
fn describe(paths: &mut Paths, who: &str) {
    for operation in paths.paths.values_mut().flat_map(operations) {
        let extensions = operation.extensions.get_or_insert_default();
        extensions
            .entry(EXTENSION.to_owned())
            .or_insert_with(|| Value::String(who.to_owned()));
    }
}

/// Who may call an operation that was described.
pub(super) fn role(operation: &Operation) -> &str {
    let extensions = operation.extensions.as_ref();
    let role = extensions.and_then(|extensions| extensions.get(EXTENSION)?.as_str());
    role.unwrap_or_default()
}

pub(super) fn operations(item: &mut PathItem) -> impl Iterator<Item = &mut Operation> {
    let PathItem {
        get,
        put,
        post,
        delete,
        options,
        head,
        patch,
        trace,
        ..
    } = item;
    [get, put, post, delete, options, head, patch, trace]
        .into_iter()
        .flatten()
}
