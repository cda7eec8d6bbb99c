//! A headless Chromium with one page, driven over its DevTools protocol. The protocol goes through pipes: no port, no library.

use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::path::Path;
use std::process::{ChildStdin, Command, Stdio};
use std::sync::mpsc::{Receiver, channel};
use std::thread;

use serde_json::{Value, json};
use tempfile::TempDir;

use super::process::{Guarded, scratch};
use super::wait::{PATIENCE, until};

/// What the page is shown on.
#[derive(Debug, Clone, Copy)]
pub struct Screen {
    pub width: u32,
    pub height: u32,
    pub dark: bool,
}

impl Screen {
    pub const WIDE: Self = Self {
        width: 1280,
        height: 900,
        dark: false,
    };
    pub const PHONE: Self = Self {
        width: 360,
        height: 780,
        dark: false,
    };

    pub fn dark(self) -> Self {
        Self { dark: true, ..self }
    }
}

/// A browser that shows one page; ended on drop.
pub struct Browser {
    process: Guarded,
    input: ChildStdin,
    messages: Receiver<Value>,
    next: u64,
    session: Option<String>,
    complaints: Vec<String>,
    answer: Answer,
    asked: u64,
    _profile: TempDir,
}

/// What the page gets when it asks for its numbers.
#[derive(Debug, Clone)]
enum Answer {
    /// What pgweir says.
    Real,
    /// This instead.
    Given(Value),
    /// Nothing.
    Failure,
}

impl Browser {
    /// Starts it, with an empty page.
    #[track_caller]
    pub fn start(screen: Screen) -> Self {
        let profile = scratch();
        // The protocol is spoken over descriptors 3 and 4. There is no sandbox where tests run as root.
        let script = "exec chromium --headless --no-sandbox --disable-gpu --disable-dev-shm-usage --hide-scrollbars \
            --no-first-run --remote-debugging-pipe --user-data-dir=\"$1\" about:blank 3<&0 4>&1 </dev/null >/dev/null";
        let mut command = Command::new("sh");
        command
            .args(["-c", script, "browser"])
            .arg(profile.path())
            .env("TZ", "UTC")
            .env("HOME", profile.path())
            .stderr(Stdio::null());
        let (process, input, output) = Guarded::spawn_piped(&mut command, "KILL", profile.path());
        let (sender, messages) = channel();
        thread::spawn(move || {
            for message in BufReader::new(output).split(0).map_while(Result::ok) {
                let message = serde_json::from_slice(&message).expect("Chromium speaks JSON");
                if sender.send(message).is_err() {
                    return;
                }
            }
        });
        let mut browser = Self {
            process,
            input,
            messages,
            next: 0,
            session: None,
            complaints: vec![],
            answer: Answer::Real,
            asked: 0,
            _profile: profile,
        };
        browser.attach();
        browser.show_on(screen);
        browser
    }

    fn attach(&mut self) {
        let target = self.call("Target.createTarget", &json!({ "url": "about:blank" }));
        let target = json!({ "targetId": target["targetId"], "flatten": true });
        let attached = self.call("Target.attachToTarget", &target);
        self.session = attached["sessionId"].as_str().map(str::to_owned);
        for domain in ["Page", "Runtime", "Log"] {
            self.call(&format!("{domain}.enable"), &json!({}));
        }
        let pattern = json!({ "patterns": [{ "urlPattern": "*status.json*" }] });
        self.call("Fetch.enable", &pattern);
    }

    /// Changes the screen.
    pub fn show_on(&mut self, screen: Screen) {
        let Screen {
            width,
            height,
            dark,
        } = screen;
        let metrics = json!({ "width": width, "height": height, "deviceScaleFactor": 1, "mobile": width < 600 });
        self.call("Emulation.setDeviceMetricsOverride", &metrics);
        let scheme = if dark { "dark" } else { "light" };
        let media = json!({ "features": [{ "name": "prefers-color-scheme", "value": scheme }] });
        self.call("Emulation.setEmulatedMedia", &media);
    }

    /// Loads a page and waits for what it needs.
    #[track_caller]
    pub fn open(&mut self, url: &str) {
        let answer = self.call("Page.navigate", &json!({ "url": url }));
        assert!(answer["errorText"].is_null(), "{url}: {answer}");
        self.until(
            "the page is loaded",
            "location.href !== 'about:blank' && document.readyState === 'complete'",
        );
    }

    /// The value of an expression.
    #[track_caller]
    pub fn value(&mut self, expression: &str) -> Value {
        let parameters =
            json!({ "expression": expression, "returnByValue": true, "awaitPromise": true });
        let answer = self.call("Runtime.evaluate", &parameters);
        assert!(
            answer["exceptionDetails"].is_null(),
            "{expression}: {answer}"
        );
        answer["result"]["value"].clone()
    }

    /// The value of an expression that is a text.
    #[track_caller]
    pub fn text(&mut self, expression: &str) -> String {
        let value = self.value(expression);
        let text = value.as_str().map(str::to_owned);
        text.unwrap_or_else(|| panic!("{expression} is {value}"))
    }

    /// Waits until an expression holds.
    #[track_caller]
    pub fn until(&mut self, what: &str, expression: &str) {
        until(what, PATIENCE, || {
            (self.value(&format!("Boolean({expression})")) == json!(true)).then_some(())
        });
    }

    /// Presses a key and lets it go, by the name that `KeyboardEvent.key` has for it.
    pub fn press(&mut self, key: &str) {
        let code = match key {
            "Tab" => 9,
            "Enter" => 13,
            "Escape" => 27,
            "Home" => 36,
            "ArrowLeft" => 37,
            "ArrowRight" => 39,
            _ => panic!("which key is {key}?"),
        };
        // Without a text, Enter does not press a button.
        let text = if key == "Enter" { "\r" } else { "" };
        for kind in ["keyDown", "keyUp"] {
            let event = json!({ "type": kind, "key": key, "code": key, "windowsVirtualKeyCode": code, "text": text });
            self.call("Input.dispatchKeyEvent", &event);
        }
    }

    /// Gives the page these numbers from now on, instead of those of the process behind it.
    pub fn answer_with(&mut self, numbers: Value) {
        self.answer = Answer::Given(numbers);
    }

    /// Has the page's questions fail from now on.
    pub fn answer_nothing(&mut self) {
        self.answer = Answer::Failure;
    }

    /// How often the page has asked for its numbers.
    pub fn asked(&mut self) -> u64 {
        self.value("0");
        self.asked
    }

    /// What the browser complained of: errors of scripts, refused contents, failed requests.
    pub fn complaints(&mut self) -> Vec<String> {
        self.value("0");
        std::mem::take(&mut self.complaints)
    }

    /// Writes a picture of the page, `height` pixels of it.
    pub fn screenshot(&mut self, file: &Path, width: u32, height: u32) {
        use base64::Engine as _;
        let clip = json!({ "x": 0, "y": 0, "width": width, "height": height, "scale": 1 });
        let parameters = json!({ "format": "png", "captureBeyondViewport": true, "clip": clip });
        let answer = self.call("Page.captureScreenshot", &parameters);
        let picture = answer["data"].as_str().expect("a picture");
        let picture = base64::engine::general_purpose::STANDARD.decode(picture);
        fs::write(file, picture.expect("base64")).expect("the file can be written");
    }

    /// Has something done, and waits for the answer.
    #[track_caller]
    fn call(&mut self, method: &str, parameters: &Value) -> Value {
        let id = self.send(method, parameters);
        loop {
            let message = self.messages.recv_timeout(PATIENCE);
            let message = message.unwrap_or_else(|_| {
                panic!(
                    "no answer to {method}; is chromium installed? scripts/install-deps.sh does it"
                )
            });
            if message["id"] == id {
                assert!(message["error"].is_null(), "{method}: {message}");
                return message["result"].clone();
            }
            self.hear(&message);
        }
    }

    fn send(&mut self, method: &str, parameters: &Value) -> u64 {
        self.next += 1;
        let mut message = json!({ "id": self.next, "method": method, "params": parameters });
        if let Some(session) = &self.session {
            message["sessionId"] = json!(session);
        }
        let sent = self.input.write_all(format!("{message}\0").as_bytes());
        sent.unwrap_or_else(|error| panic!("chromium is gone: {error}"));
        self.next
    }

    fn hear(&mut self, message: &Value) {
        let parameters = &message["params"];
        match message["method"].as_str().unwrap_or_default() {
            "Runtime.exceptionThrown" | "Runtime.consoleAPICalled" => {
                self.complaints.push(parameters.to_string());
            }
            "Log.entryAdded" if parameters["entry"]["level"] != "info" => {
                self.complaints.push(parameters["entry"].to_string());
            }
            "Fetch.requestPaused" => self.answer(&parameters["requestId"]),
            _ => {}
        }
    }

    fn answer(&mut self, request: &Value) {
        use base64::Engine as _;
        self.asked += 1;
        // Nobody waits for the answers: they are for calls that are over.
        match self.answer.clone() {
            Answer::Real => self.send("Fetch.continueRequest", &json!({ "requestId": request })),
            Answer::Failure => {
                let failure = json!({ "requestId": request, "errorReason": "ConnectionRefused" });
                self.send("Fetch.failRequest", &failure)
            }
            Answer::Given(numbers) => {
                let body = base64::engine::general_purpose::STANDARD.encode(numbers.to_string());
                let given = json!({ "requestId": request, "responseCode": 200, "body": body });
                self.send("Fetch.fulfillRequest", &given)
            }
        };
    }
}

impl Drop for Browser {
    fn drop(&mut self) {
        // Its own goodbye takes its helpers with it; what does not go then is killed.
        self.session = None;
        let goodbye = json!({ "id": self.next + 1, "method": "Browser.close" });
        let _ = self.input.write_all(format!("{goodbye}\0").as_bytes());
        let start = std::time::Instant::now();
        while self.process.ended().is_none() && start.elapsed() < PATIENCE / 6 {
            thread::sleep(std::time::Duration::from_millis(5));
        }
    }
}
