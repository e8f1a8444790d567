//! HTTP clients of the console that act as a browser without scripts: they keep the cookie, follow
//! links and send forms.

use crate::test_env::TestEnv;
use reqwest::{RequestBuilder, StatusCode, header::HeaderMap, redirect::Policy};

/// Maximum redirects that a browser follows.
const MAX_REDIRECTS: usize = 5;

/// A browser of the console.
pub struct Browser {
    http: reqwest::Client,
    base: String,
    /// Cookie of the session.
    pub cookie: Option<String>,
}

/// A page.
#[derive(Debug)]
pub struct Page {
    /// Status.
    pub status: StatusCode,
    /// Headers.
    pub headers: HeaderMap,
    /// Text.
    pub text: String,
}

/// A form of a page.
#[derive(Debug, Clone)]
pub struct Form {
    /// Address.
    pub action: String,
    /// Fields that are sent.
    pub fields: Vec<(String, String)>,
}

impl Browser {
    /// Starts a browser without a session.
    pub fn new(env: &TestEnv) -> Self {
        let http = reqwest::Client::builder().redirect(Policy::none()).build();
        let (http, base) = (http.expect("a client"), env.controls[0].console(""));
        Self { http, base, cookie: None }
    }

    /// Logs in with a new API key. Without an organization the key is for all organizations.
    pub async fn log_in(env: &TestEnv, role: &str, org: Option<&str>) -> Self {
        let mut browser = Self::new(env);
        let page = browser.log_in_with(&crate::install::key(env, role, org), "/").await;
        assert_eq!(page.status, StatusCode::SEE_OTHER, "{}", page.text);
        browser
    }

    /// Sends the form of the login page.
    pub async fn log_in_with(&mut self, key: &str, to: &str) -> Page {
        let action = "/login".to_owned();
        let fields = [("key", key), ("to", to)].map(|(n, v)| (n.to_owned(), v.to_owned()));
        self.send(&Form { action, fields: fields.to_vec() }).await
    }

    async fn open_request(&mut self, request: RequestBuilder) -> Page {
        let request = match &self.cookie {
            Some(cookie) => request.header("cookie", cookie),
            None => request,
        };
        let response = request.send().await.expect("a response");
        let (status, headers) = (response.status(), response.headers().clone());
        if let Some(set) = headers.get("set-cookie") {
            let set = set.to_str().expect("text");
            for attribute in ["Path=/", "Secure", "HttpOnly", "SameSite=Lax", "Max-Age="] {
                assert!(set.contains(attribute), "{set}");
            }
            assert!(set.starts_with("__Host-"), "{set}");
            let cookie = set.split(';').next().expect("a cookie").to_owned();
            self.cookie = (!cookie.ends_with('=')).then_some(cookie);
        }
        Page { status, headers, text: response.text().await.expect("a body") }
    }

    /// Opens a page. Does not follow redirects.
    pub async fn get(&mut self, path: &str) -> Page {
        let request = self.http.get(format!("{}{path}", self.base));
        self.open_request(request).await
    }

    /// Opens a page and follows redirects.
    pub async fn open(&mut self, path: &str) -> Page {
        let mut page = self.get(path).await;
        for _ in 0..MAX_REDIRECTS {
            let Some(target) = page.location() else { break };
            page = self.get(&target).await;
        }
        page
    }

    /// Sends a form. Does not follow redirects.
    pub async fn send(&mut self, form: &Form) -> Page {
        self.send_from("same-origin", form).await
    }

    /// Sends a form with a value of `Sec-Fetch-Site`: `same-origin` or `cross-site`.
    pub async fn send_from(&mut self, site: &str, form: &Form) -> Page {
        let mut body = form_urlencoded::Serializer::new(String::new());
        body.extend_pairs(&form.fields);
        let request = self
            .http
            .post(format!("{}{}", self.base, form.action))
            .header("content-type", "application/x-www-form-urlencoded")
            .header("sec-fetch-site", site)
            .body(body.finish());
        self.open_request(request).await
    }

    /// Sends a form and follows redirects.
    pub async fn submit(&mut self, form: &Form) -> Page {
        let page = self.send(form).await;
        match page.location() {
            Some(target) => self.open(&target).await,
            None => page,
        }
    }
}

impl Page {
    /// Returns the target of a redirect.
    pub fn location(&self) -> Option<String> {
        let target = self.headers.get("location")?;
        Some(target.to_str().expect("text").to_owned())
    }

    /// Returns the form with an action, and its hidden fields.
    pub fn form(&self, action: &str) -> Form {
        let found = self.try_form(action);
        found.unwrap_or_else(|| panic!("no form {action}: {}", self.text))
    }

    /// Returns the form with an action, if the page has it.
    pub fn try_form(&self, action: &str) -> Option<Form> {
        let start = format!("<form method=\"post\" action=\"{}\"", escaped(action));
        let (_, rest) = self.text.split_once(&start)?;
        let (form, _) = rest.split_once("</form>").expect("the end of a form");
        let fields = form.split("<input type=\"hidden\" ").skip(1).map(|input| {
            let value = |name: &str| {
                let (_, rest) = input.split_once(&format!("{name}=\"")).expect("an attribute");
                unescaped(rest.split('"').next().unwrap_or_default())
            };
            (value("name"), value("value"))
        });
        Some(Form { action: action.to_owned(), fields: fields.collect() })
    }

    /// Returns the targets of the links with a text.
    pub fn links(&self, text: &str) -> Vec<String> {
        let end = format!(">{text}</a>");
        let links = self.text.match_indices(&end).map(|(at, _)| {
            let (_, href) = self.text[..at].rsplit_once("href=\"").expect("a target");
            unescaped(href.split('"').next().unwrap_or_default())
        });
        links.collect()
    }

    /// Returns the target of the first link with a text.
    pub fn link(&self, text: &str) -> String {
        let found = self.links(text).into_iter().next();
        found.unwrap_or_else(|| panic!("no link {text}: {}", self.text))
    }
}

const ESCAPES: [(&str, &str); 5] =
    [("&#60;", "<"), ("&#62;", ">"), ("&#34;", "\""), ("&#39;", "'"), ("&#38;", "&")];

fn unescaped(text: &str) -> String {
    ESCAPES.iter().fold(text.to_owned(), |text, (from, to)| text.replace(from, to))
}

fn escaped(text: &str) -> String {
    ESCAPES.iter().rev().fold(text.to_owned(), |text, (to, from)| text.replace(from, to))
}
