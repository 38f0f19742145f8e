//! What this server's configuration says for the programs of an app, and how they get it: filled
//! into the words of commands and variables, and as variables.

use std::collections::BTreeMap;

use cohort_core::ids::{AppId, PortName};
use cohort_core::policy::PortAt;

/// What stands in commands and variables for what a program also gets as a variable.
const OF_VARIABLES: [(&str, &str); 6] = [
    ("server", "COHORT_SERVER"),
    ("release_dir", "COHORT_RELEASE_DIR"),
    ("state_dir", "COHORT_STATE_DIR"),
    ("cache_dir", "COHORT_CACHE_DIR"),
    ("runtime_dir", "COHORT_RUNTIME_DIR"),
    ("files_dir", "COHORT_FILES_DIR"),
];

/// What stands for the app's own port.
const PORT: &str = "port";

/// A server's ports and labels, as one app sees them.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct OwnValues {
    port: Option<u16>,
    ports: BTreeMap<PortName, u16>,
    labels: BTreeMap<String, String>,
}

/// A release or a policy names what this server does not have.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(crate) enum NotSet {
    #[error(
        "it uses the app's own port, and this server names none: set `service_port` in \
         agent.toml, or the app's name in `ports`"
    )]
    Port,
    #[error(
        "it uses the port `{0}`, which this server does not name: add it to `ports` in agent.toml"
    )]
    Named(String),
    #[error(
        "it uses the label `{0}`, which this server does not have: add it to `labels` in agent.toml"
    )]
    Label(String),
}

impl OwnValues {
    /// As `app` sees them: its own port is the one that has its name, or else `service_port`.
    #[must_use]
    pub fn of(
        app: &AppId,
        service_port: Option<u16>,
        ports: BTreeMap<PortName, u16>,
        labels: BTreeMap<String, String>,
    ) -> Self {
        OwnValues { port: ports.get(app.as_str()).copied().or(service_port), ports, labels }
    }

    /// The app's own port.
    pub(crate) fn port(&self) -> Option<u16> {
        self.port
    }

    /// The port that is meant.
    pub(crate) fn port_at(&self, at: Option<&PortAt>) -> Result<u16, NotSet> {
        match at {
            None => self.port.ok_or(NotSet::Port),
            Some(PortAt::Number(number)) => Ok(number.get()),
            Some(PortAt::Named(name)) => self.named(name.as_str()),
        }
    }

    fn named(&self, name: &str) -> Result<u16, NotSet> {
        self.ports.get(name).copied().ok_or_else(|| NotSet::Named(name.to_owned()))
    }

    /// As variables for programs: `COHORT_SERVICE_PORT`, `COHORT_PORT_METRICS`,
    /// `COHORT_LABEL_ZONE`.
    pub(crate) fn variables(&self) -> BTreeMap<String, String> {
        let variable = |kind: &str, name: &str| {
            let upper =
                |c: char| if c.is_ascii_alphanumeric() { c.to_ascii_uppercase() } else { '_' };
            format!("COHORT_{kind}_{}", name.chars().map(upper).collect::<String>())
        };
        let own = self.port.map(|port| ("COHORT_SERVICE_PORT".to_owned(), port.to_string()));
        let ports = self.ports.iter();
        let ports = ports.map(|(name, port)| (variable("PORT", name.as_str()), port.to_string()));
        let labels = self.labels.iter();
        let labels = labels.map(|(name, value)| (variable("LABEL", name), value.clone()));
        own.into_iter().chain(ports).chain(labels).collect()
    }

    /// Replaces `{port}`, `{port.NAME}`, `{label.NAME}` and what stands for a variable. Other words
    /// in braces stay, and what is filled in is not looked at again.
    pub(crate) fn fill_in(
        &self,
        text: &str,
        variables: &BTreeMap<String, String>,
    ) -> Result<String, NotSet> {
        let mut filled = String::with_capacity(text.len());
        let mut rest = text;
        while let Some((before, after)) = rest.split_once('{') {
            filled.push_str(before);
            let name = after.split_once('}').map(|(name, _)| name);
            match name.map(|name| self.value_of(name, variables)).transpose()?.flatten() {
                Some(value) => {
                    filled.push_str(&value);
                    rest = after.split_once('}').map_or("", |(_, rest)| rest);
                }
                None => {
                    filled.push('{');
                    rest = after;
                }
            }
        }
        filled.push_str(rest);
        Ok(filled)
    }

    fn value_of(
        &self,
        name: &str,
        variables: &BTreeMap<String, String>,
    ) -> Result<Option<String>, NotSet> {
        if name == PORT {
            return self.port_at(None).map(|port| Some(port.to_string()));
        }
        match name.split_once('.') {
            Some((PORT, port)) => self.named(port).map(|port| Some(port.to_string())),
            Some(("label", label)) => {
                let value = self.labels.get(label).cloned();
                value.map(Some).ok_or_else(|| NotSet::Label(label.to_owned()))
            }
            _ => {
                let variable = OF_VARIABLES.iter().find(|(known, _)| *known == name);
                Ok(variable.and_then(|(_, variable)| variables.get(*variable).cloned()))
            }
        }
    }
}

/// Whether the app's own port would be filled in.
pub(crate) fn names_port(text: &str) -> bool {
    text.contains("{port}")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn values() -> OwnValues {
        let ports = [("metrics".parse().unwrap(), 9100), ("api".parse().unwrap(), 8081)];
        let labels = [("zone".to_owned(), "zone-a".to_owned())];
        OwnValues::of(&"web".parse().unwrap(), Some(8080), ports.into(), labels.into())
    }

    #[test]
    fn a_server_s_own_values_are_filled_in_once() {
        let variables = [("COHORT_SERVER", "{port}"), ("COHORT_STATE_DIR", "/state")];
        let variables = variables.map(|(name, value)| (name.to_owned(), value.to_owned())).into();
        for (text, filled) in [
            ("--port={port}", "--port=8080"),
            ("{port.metrics}{label.zone}", "9100zone-a"),
            ("{server}", "{port}"),
            ("{state_dir}/{db", "/state/{db"),
            ("{\"a\": {port}}", "{\"a\": 8080}"),
            ("{cache_dir} {} {prot} ${HOME}", "{cache_dir} {} {prot} ${HOME}"),
        ] {
            assert_eq!(values().fill_in(text, &variables).as_deref(), Ok(filled), "{text}");
        }
    }

    #[test]
    fn what_a_server_does_not_have_is_named() {
        let none = OwnValues::default();
        for (text, missing) in [
            ("{port}", NotSet::Port),
            ("{port.metrics}", NotSet::Named("metrics".into())),
            ("{label.zone}", NotSet::Label("zone".into())),
        ] {
            assert_eq!(none.fill_in(text, &BTreeMap::new()), Err(missing), "{text}");
        }
    }

    #[test]
    fn a_port_with_the_app_s_name_is_its_own() {
        let (ports, labels) = (values().ports, values().labels);
        let api = OwnValues::of(&"api".parse().unwrap(), Some(8080), ports, labels);
        assert_eq!((api.port(), values().port()), (Some(8081), Some(8080)));
        assert_eq!(values().port_at(Some(&PortAt::Named("api".parse().unwrap()))), Ok(8081));
        let variables = api.variables();
        for (name, value) in [
            ("COHORT_SERVICE_PORT", "8081"),
            ("COHORT_PORT_METRICS", "9100"),
            ("COHORT_LABEL_ZONE", "zone-a"),
        ] {
            assert_eq!(variables.get(name).map(String::as_str), Some(value));
        }
    }
}
