//! Paged lists.

use std::{fmt::Debug, time::Duration};

use kube::{
    Api, Resource,
    api::{ListParams, ObjectList, PartialObjectMeta},
};
use serde::de::DeserializeOwned;
use tokio::time::timeout;

use super::object::PAGE_SIZE;

/// Maximum number of attempts at a list. A list starts over if its continue token expires
/// (kubernetes.io/docs/reference/using-api/api-concepts, 410 Gone).
const MAX_ATTEMPTS: usize = 3;

/// Maximum time for one page.
const PAGE_TIMEOUT: Duration = Duration::from_secs(30);

/// The API server did not respond in time.
#[derive(Debug, thiserror::Error)]
#[error("no response from the API server within {} s", PAGE_TIMEOUT.as_secs())]
struct PageTimeout;

/// Lists all objects, and converts each with `read`.
///
/// # Errors
///
/// When a request for a page fails.
pub(crate) async fn list<K, T>(
    api: &Api<K>,
    params: ListParams,
    read: impl FnMut(K) -> Option<T>,
) -> kube::Result<Vec<T>>
where
    K: Resource + Clone + Debug + DeserializeOwned,
{
    pages(|page| async move { api.list(&page).await }, params, read).await
}

/// Lists the metadata of all objects, and converts each with `read`. The API server sends only metadata.
///
/// # Errors
///
/// When a request for a page fails.
pub(crate) async fn list_metadata<K, T>(
    api: &Api<K>,
    params: ListParams,
    read: impl FnMut(PartialObjectMeta<K>) -> Option<T>,
) -> kube::Result<Vec<T>>
where
    K: Resource + Clone + Debug + DeserializeOwned,
{
    pages(|page| async move { api.list_metadata(&page).await }, params, read).await
}

async fn pages<K: Clone, T, Page: Future<Output = kube::Result<ObjectList<K>>>>(
    get: impl Fn(ListParams) -> Page,
    params: ListParams,
    mut read: impl FnMut(K) -> Option<T>,
) -> kube::Result<Vec<T>> {
    let first = params.limit(PAGE_SIZE);
    let (mut params, mut all, mut attempts) = (first.clone(), Vec::new(), 1);
    loop {
        let page = timeout(PAGE_TIMEOUT, get(params)).await;
        let page = match page.unwrap_or_else(|_elapsed| Err(kube::Error::Service(PageTimeout.into()))) {
            Ok(page) => page,
            Err(kube::Error::Api(status)) if status.code == 410 && attempts < MAX_ATTEMPTS => {
                attempts += 1;
                all.clear();
                params = first.clone();
                continue;
            }
            Err(error) => return Err(error),
        };
        all.extend(page.items.into_iter().filter_map(&mut read));
        match page.metadata.continue_.filter(|token| !token.is_empty()) {
            Some(token) => params = first.clone().continue_token(&token),
            None => return Ok(all),
        }
    }
}
