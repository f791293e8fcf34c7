//! Who may call an operation, for the document. It is taken from the handler's own signature, which is the authorization,
//! so that the document cannot say something else.

use axum::routing::MethodRouter;
use serde_json::Value;
use utoipa::openapi::{
    OpenApi, Paths,
    path::{Operation, PathItem},
};
use utoipa_axum::router::UtoipaMethodRouter;

use super::authentication::{Authorized, Demand};

/// The member of an operation that names the lowest role that may call it, or says who else may.
const EXTENSION: &str = "x-assay-role";

/// Operations that need no credentials.
pub(super) const ANYBODY: &str = "anybody";
/// Operations that need evidence, signed by the machine's key.
pub(super) const MACHINE: &str = "machine";

/// A handler that demands a role before anything else.
pub(super) trait Demanding<Arguments> {
    const ROLE: &'static str;
}

macro_rules! demanding {
    ($($argument:ident)+) => {
        impl<H, A, R: Demand, $($argument),+> Demanding<(R, $($argument,)+)> for H
        where
            H: Fn(Authorized<R>, $($argument),+) -> A,
        {
            const ROLE: &'static str = R::NAME;
        }
    };
}

demanding!(A1);
demanding!(A1 A2);
demanding!(A1 A2 A3);
demanding!(A1 A2 A3 A4);
demanding!(A1 A2 A3 A4 A5);

/// The routes of handlers of one path that all demand a role: as `utoipa_axum::routes`, and the document says which.
macro_rules! routes {
    ($($handler:ident),+ $(,)?) => {
        $crate::http::operation::merged([$(
            $crate::http::operation::demanding(utoipa_axum::routes!($handler), &$handler),
        )+])
    };
}
pub(super) use routes;

pub(super) fn demanding<S, Arguments, H: Demanding<Arguments>>(
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

/// Says of every operation whose handler demands no role who may call it.
pub(super) fn describe_others(mut document: OpenApi, who: &str) -> OpenApi {
    describe(&mut document.paths, who);
    document
}

/// What an operation says already stays.
fn describe(paths: &mut Paths, who: &str) {
    for operation in paths.paths.values_mut().flat_map(operations) {
        let extensions = operation.extensions.get_or_insert_default();
        extensions
            .entry(EXTENSION.to_owned())
            .or_insert_with(|| Value::String(who.to_owned()));
    }
}

fn operations(item: &mut PathItem) -> impl Iterator<Item = &mut Operation> {
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
