//! Lists, page by page.

use std::fmt::Debug;

use kube::{Api, Resource, api::ListParams};
use serde::de::DeserializeOwned;

/// Objects in one page of a list. What is not read of them is gone before the next page comes.
pub(crate) const PAGE: u32 = 250;

/// How often a list is begun anew because it took longer than the API server remembers
/// (kubernetes.io/docs/reference/using-api/api-concepts, 410 Gone).
const ATTEMPTS: usize = 3;

/// What is read of each object; nothing of those that do not count.
pub(crate) async fn list<O, T>(api: &Api<O>, params: ListParams, read: impl Fn(O) -> Option<T>) -> kube::Result<Vec<T>>
where
    O: Resource + Clone + Debug + DeserializeOwned,
{
    let first = params.limit(PAGE);
    let (mut params, mut all, mut attempts) = (first.clone(), Vec::new(), 1);
    loop {
        let page = match api.list(&params).await {
            Ok(page) => page,
            Err(kube::Error::Api(status)) if status.code == 410 && attempts < ATTEMPTS => {
                attempts += 1;
                all.clear();
                params = first.clone();
                continue;
            }
            Err(error) => return Err(error),
        };
        all.extend(page.items.into_iter().filter_map(&read));
        match page.metadata.continue_.filter(|token| !token.is_empty()) {
            Some(token) => params = first.clone().continue_token(&token),
            None => return Ok(all),
        }
    }
}
