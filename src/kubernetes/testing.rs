//! A fake API server for tests. It lists its objects, sends watch events, and records the requests.

use std::{
    collections::BTreeMap,
    convert::Infallible,
    sync::{Arc, LazyLock, Mutex},
    time::Duration,
};

use axum::{body::Body as ResponseBody, http};
use futures_util::{StreamExt, stream};
use kube::{Client, client::Body};
use serde_json::{Value, json};
use tokio::sync::mpsc;

/// The response of an API server that does not support streamed lists.
pub(crate) static NO_STREAMED_LISTS: LazyLock<Value> = LazyLock::new(
    || json!({"kind": "Status", "status": "Failure", "code": 422, "reason": "Invalid", "message": "sendInitialEvents"}),
);

/// Duration of a list request.
const LIST_LATENCY: Duration = Duration::from_secs(1);

/// A fake API server. Clones share their state.
#[derive(Clone, Default)]
pub(crate) struct FakeApi(Arc<Mutex<State>>);

#[derive(Default)]
struct State {
    /// The objects by path, and by namespace and name.
    objects: BTreeMap<String, BTreeMap<(String, String), Value>>,
    version: u64,
    watches: Vec<(String, mpsc::UnboundedSender<String>)>,
    requests: Vec<String>,
    forbidden: Vec<String>,
}

impl FakeApi {
    pub(crate) fn client(&self) -> Client {
        let api = self.clone();
        let service = tower::service_fn(move |request: http::Request<Body>| {
            let api = api.clone();
            async move {
                let (path, query) = (request.uri().path().to_owned(), request.uri().query().unwrap_or_default());
                if !query.contains("watch=true") {
                    tokio::time::sleep(LIST_LATENCY).await;
                }
                Ok::<_, Infallible>(api.response(path, query))
            }
        });
        Client::new(service, "default")
    }

    /// Creates or updates an object.
    pub(crate) fn apply(&self, path: &str, object: Value) {
        self.change(path, object, "MODIFIED");
    }

    pub(crate) fn delete(&self, path: &str, object: Value) {
        self.change(path, object, "DELETED");
    }

    /// Sets whether requests to this path fail with 403.
    pub(crate) fn forbid(&self, path: &str, is_forbidden: bool) {
        let mut state = self.0.lock().unwrap();
        state.forbidden.retain(|other| other != path);
        if is_forbidden {
            state.forbidden.push(path.to_owned());
        }
    }

    /// Ends all watches of this path.
    pub(crate) fn end_watches(&self, path: &str) {
        self.0.lock().unwrap().watches.retain(|(other, _)| other != path);
    }

    /// Returns the queries of the requests to this path.
    pub(crate) fn requests(&self, path: &str) -> Vec<String> {
        let state = self.0.lock().unwrap();
        state
            .requests
            .iter()
            .filter_map(|request| Some(request.strip_prefix(path)?.strip_prefix('?')?.to_owned()))
            .collect()
    }

    /// Returns the number of started watches, by path and selector.
    pub(crate) fn watches(&self) -> BTreeMap<String, usize> {
        let mut watches = BTreeMap::new();
        for request in self.0.lock().unwrap().requests.iter().filter(|request| request.contains("watch=true")) {
            let (path, query) = request.split_once('?').unwrap();
            let selectors = query.split('&').filter(|pair| pair.contains("Selector="));
            let name = std::iter::once(path).chain(selectors).collect::<Vec<_>>().join(" ");
            *watches.entry(name).or_default() += 1;
        }
        watches
    }

    fn change(&self, path: &str, mut object: Value, type_: &str) {
        let mut state = self.0.lock().unwrap();
        state.version += 1;
        object["metadata"]["resourceVersion"] = state.version.to_string().into();
        let text = |field: &str| object["metadata"][field].as_str().unwrap_or_default().to_owned();
        let key = (text("namespace"), text("name"));
        let objects = state.objects.entry(path.to_owned()).or_default();
        match type_ {
            "DELETED" => objects.remove(&key),
            _ => objects.insert(key, object.clone()),
        };
        // As in events of the API server, the type comes first.
        let event = format!("{{\"type\":\"{type_}\",\"object\":{object}}}\n");
        let of_path = state.watches.iter().filter(|(other, _)| other == path);
        of_path.for_each(|(_, watch)| drop(watch.send(event.clone())));
    }

    fn response(&self, path: String, query: &str) -> http::Response<ResponseBody> {
        let mut state = self.0.lock().unwrap();
        let failure = |code: u16, status: &Value| {
            http::Response::builder().status(code).body(ResponseBody::from(status.to_string())).unwrap()
        };
        let is_forbidden = state.forbidden.contains(&path);
        if query.contains("sendInitialEvents=true") && !is_forbidden {
            return failure(422, &NO_STREAMED_LISTS);
        }
        state.requests.push(format!("{path}?{query}"));
        if is_forbidden {
            let status =
                json!({"kind": "Status", "status": "Failure", "code": 403, "reason": "Forbidden", "message": ""});
            return failure(403, &status);
        }
        if query.contains("watch=true") {
            let (send, receive) = mpsc::unbounded_channel();
            state.watches.push((path, send));
            let lines = stream::unfold(receive, async |mut receive| Some((receive.recv().await?, receive)));
            return http::Response::new(ResponseBody::from_stream(lines.map(Ok::<_, Infallible>)));
        }
        let items: Vec<_> = state.objects.get(&path).into_iter().flat_map(BTreeMap::values).collect();
        let list = json!({"metadata": {"resourceVersion": state.version.to_string()}, "items": items});
        http::Response::new(ResponseBody::from(list.to_string()))
    }
}
