//! A TCP proxy in front of a real registry server that does to an answer what networks and servers do.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

/// What happens to an answer for a blob. Other paths pass.
#[derive(Clone, Debug)]
pub enum Fault {
    /// Nothing.
    Pass,
    /// The connection is closed without an answer.
    Refuse,
    /// The body is cut after so many bytes.
    Cut(usize),
    /// The body stops after so many bytes, and the connection stays open.
    Stall(usize),
    /// One bit of the body is flipped.
    Flip(usize),
    /// This answer instead.
    Answer(String),
    /// The range asked for is ignored: 200 and everything.
    IgnoreRange,
    /// The `Content-Range` of a partial answer says something else.
    WrongRange,
    /// The `Content-Length` of the answer says so much more, or less, than comes.
    WrongLength(i64),
    /// Another server is to be asked.
    Redirect(String),
    /// So many bytes at a time, with pauses.
    Trickle(usize, Duration),
}

pub struct Proxy {
    pub address: SocketAddr,
    pub requests: Arc<AtomicUsize>,
    pub log: Arc<Mutex<Vec<String>>>,
    stop: Arc<AtomicBool>,
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        drop(TcpStream::connect(self.address));
    }
}

impl Proxy {
    /// `faults` are used up in order by requests for blobs; then everything passes.
    pub fn new(upstream: SocketAddr, faults: Vec<Fault>) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let (requests, stop) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicBool::new(false)));
        let log = Arc::new(Mutex::new(Vec::new()));
        let faults =
            Arc::new(Mutex::new(faults.into_iter().collect::<std::collections::VecDeque<_>>()));
        let (count, stopped, lines) = (Arc::clone(&requests), Arc::clone(&stop), Arc::clone(&log));
        std::thread::spawn(move || {
            for client in listener.incoming() {
                if stopped.load(Ordering::Relaxed) {
                    return;
                }
                let Ok(client) = client else { continue };
                let (faults, count, lines) =
                    (Arc::clone(&faults), Arc::clone(&count), Arc::clone(&lines));
                std::thread::spawn(move || {
                    // A connection that breaks is what this is for.
                    drop(serve(client, upstream, &faults, &count, &lines));
                });
            }
        });
        Self { address, requests, log, stop }
    }

    pub fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    pub fn count(&self) -> usize {
        self.requests.load(Ordering::Relaxed)
    }
}

fn read_head(stream: &mut TcpStream) -> std::io::Result<String> {
    let mut head = Vec::new();
    let mut byte = [0];
    while !head.ends_with(b"\r\n\r\n") {
        stream.read_exact(&mut byte)?;
        head.push(byte[0]);
    }
    Ok(String::from_utf8_lossy(&head).into_owned())
}

fn header(head: &str, name: &str) -> Option<String> {
    let mut lines = head.lines().skip(1);
    lines.find_map(|line| {
        let (key, value) = line.split_once(':')?;
        key.eq_ignore_ascii_case(name).then(|| value.trim().to_owned())
    })
}

/// One request for each connection: every answer closes it.
fn serve(
    mut client: TcpStream,
    upstream: SocketAddr,
    faults: &Mutex<std::collections::VecDeque<Fault>>,
    count: &AtomicUsize,
    log: &Mutex<Vec<String>>,
) -> std::io::Result<()> {
    let mut head = read_head(&mut client)?;
    count.fetch_add(1, Ordering::Relaxed);
    log.lock().unwrap().push(head.clone());
    let fault = if head.lines().next().is_some_and(|line| line.contains("/blobs/")) {
        faults.lock().unwrap().pop_front()
    } else {
        None
    };
    let fault = fault.unwrap_or(Fault::Pass);
    match &fault {
        Fault::Refuse => return Ok(()),
        Fault::Answer(answer) => return client.write_all(answer.as_bytes()),
        Fault::Redirect(to) => {
            let path = head.split(' ').nth(1).unwrap();
            let answer = format!(
                "HTTP/1.1 307 Elsewhere\r\nlocation: {to}{path}\r\ncontent-length: 0\r\n\r\n"
            );
            return client.write_all(answer.as_bytes());
        }
        Fault::IgnoreRange => {
            let lines = head.lines().filter(|line| !line.to_lowercase().starts_with("range:"));
            head =
                lines.filter(|line| !line.is_empty()).map(|line| format!("{line}\r\n")).collect();
            head += "\r\n";
        }
        _ => {}
    }
    let mut server = TcpStream::connect(upstream)?;
    server.write_all(head.replacen("\r\n", "\r\nconnection: close\r\n", 1).as_bytes())?;
    if let Some(length) = header(&head, "content-length") {
        let mut body = vec![0; length.parse().unwrap()];
        client.read_exact(&mut body)?;
        server.write_all(&body)?;
    }
    let mut answer = read_head(&mut server)?;
    if let (Fault::WrongRange, Some(range)) = (&fault, header(&answer, "content-range")) {
        answer = answer.replace(&range, "bytes 0-0/1");
    }
    if let (Fault::WrongLength(more), Some(length)) = (&fault, header(&answer, "content-length")) {
        let wrong = length.parse::<i64>().unwrap() + more;
        let said = |n: &dyn std::fmt::Display| format!("content-length: {n}\r\n");
        answer = answer.replace(&said(&length), &said(&wrong));
        assert!(answer.contains(&said(&wrong)));
    }
    client.write_all(answer.as_bytes())?;
    let mut body = Vec::new();
    server.read_to_end(&mut body)?;
    match fault {
        Fault::Cut(n) => client.write_all(&body[..n.min(body.len())]),
        Fault::Stall(n) => {
            client.write_all(&body[..n.min(body.len())])?;
            client.flush()?;
            // Until the other side gives up.
            client.read_to_end(&mut Vec::new()).map(drop)
        }
        Fault::Flip(n) => {
            if let Some(byte) = body.get_mut(n) {
                *byte ^= 1;
            }
            client.write_all(&body)
        }
        Fault::Trickle(n, pause) => {
            for piece in body.chunks(n) {
                client.write_all(piece)?;
                std::thread::sleep(pause);
            }
            Ok(())
        }
        _ => client.write_all(&body),
    }
}
