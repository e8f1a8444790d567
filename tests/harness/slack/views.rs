//! Modals and triggers. A `trigger_id` is valid once within three seconds. The hash of a view
//! changes with each update.

use serde_json::{Value, json};
use std::{
    collections::HashMap,
    time::{Duration, SystemTime},
};

/// Lifetime of a trigger.
pub(super) const TRIGGER_LIFE: Duration = Duration::from_secs(3);

#[derive(Debug)]
struct Trigger {
    made: SystemTime,
    used: bool,
}

/// All views and triggers.
#[derive(Debug, Default)]
pub(super) struct Views {
    triggers: HashMap<String, Trigger>,
    views: HashMap<String, Value>,
    count: u64,
}

impl Views {
    pub(super) fn trigger(&mut self, id: &str, now: SystemTime) {
        self.triggers.insert(id.to_owned(), Trigger { made: now, used: false });
    }

    /// Registers the open view of a webhook.
    pub(super) fn known(&mut self, view: &Value) {
        if let Some(id) = view["id"].as_str() {
            self.views.entry(id.to_owned()).or_insert_with(|| view.clone());
        }
    }

    pub(super) fn open(&mut self, args: &Value, now: SystemTime) -> Result<Value, &'static str> {
        let trigger = args["trigger_id"].as_str().unwrap_or_default();
        let trigger = self.triggers.get_mut(trigger).ok_or("invalid_trigger_id")?;
        if trigger.used {
            return Err("exchanged_trigger_id");
        }
        if trigger.made + TRIGGER_LIFE <= now {
            return Err("expired_trigger_id");
        }
        let view = shown(&args["view"])?;
        trigger.used = true;
        self.count += 1;
        let id = format!("V0OPEN{:04}", self.count);
        Ok(self.put(&id, view))
    }

    pub(super) fn update(&mut self, args: &Value) -> Result<Value, &'static str> {
        let by_name = |views: &HashMap<String, Value>| {
            let name = args["external_id"].as_str()?;
            let found = views.iter().find(|(_, view)| view["external_id"] == name);
            found.map(|(id, _)| id.clone())
        };
        let id = args["view_id"].as_str().map(str::to_owned).or_else(|| by_name(&self.views));
        let id = id.ok_or("invalid_arguments")?;
        let there = self.views.get(&id).ok_or("not_found")?;
        if args["hash"].is_string() && args["hash"] != there["hash"] {
            return Err("hash_conflict");
        }
        let view = shown(&args["view"])?;
        Ok(self.put(&id, view))
    }

    /// Publishes a person's home view.
    pub(super) fn publish(&mut self, team: &str, args: &Value) -> Result<Value, &'static str> {
        let user = args["user_id"].as_str().ok_or("invalid_arguments")?;
        let view = shown(&args["view"])?;
        Ok(self.put(&format!("VHOME{team}{user}"), view))
    }

    pub(super) fn find(&self, id: &str) -> Option<Value> {
        self.views.get(id).cloned()
    }

    fn put(&mut self, id: &str, mut view: Value) -> Value {
        self.count += 1;
        view["id"] = id.into();
        view["root_view_id"] = id.into();
        view["hash"] = format!("{}.hash", self.count).into();
        self.views.insert(id.to_owned(), view.clone());
        json!({ "ok": true, "view": view })
    }
}

fn shown(view: &Value) -> Result<Value, &'static str> {
    let whole = view["type"].is_string() && view["blocks"].is_array();
    whole.then(|| view.clone()).ok_or("invalid_arguments")
}
