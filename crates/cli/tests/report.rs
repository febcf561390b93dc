//! Tests `danlu report`, which serves one run on this machine, or shows several runs on one page.

mod common;

use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::TcpStream;

use common::Scene;

#[test]
fn several_runs_are_compared_on_one_page() {
    let scene = Scene::new();
    for (name, rank) in [("a", 2), ("b", 4)] {
        let line = format!("train --base base --data data.json --output out/{name} --lora-r {rank}");
        scene.ok(&format!("{line} --max-steps 3 --val-size 2 --eval-steps 1"));
    }
    let written = scene.ok("report out/a out/b --output runs.html");
    assert_eq!(written.out, "runs.html\n");
    let page = String::from_utf8(scene.read("runs.html")).unwrap();
    assert!(page.contains("<code>lora_r</code></th><td>2</td><td>4</td>"), "{page}");
    assert!(!page.contains("<code>seed</code>") && !page.contains("<code>output</code>"), "{page}");
    assert_eq!(page.matches("<svg").count(), 2);
    scene.refuses(
        "report out/a base",
        "error: cannot show `base`: it is not the output folder of a training\n\n\
         hint: name the folder that `danlu train --output` wrote\n",
    );
}

/// Returns the response to a GET request with the header `Host: host`.
fn get(url: &str, host: &str) -> String {
    let address = url.trim_start_matches("http://").trim_end_matches('/');
    let mut stream = TcpStream::connect(address).unwrap();
    write!(stream, "GET / HTTP/1.1\r\nHost: {host}\r\n\r\n").unwrap();
    let mut response = String::new();
    stream.read_to_string(&mut response).unwrap();
    response
}

#[cfg(unix)]
#[test]
fn a_report_is_served_to_this_machine_until_ctrl_c() {
    let scene = Scene::new();
    scene.ok("train --base base --data data.json --output out --max-steps 1 --val-size 0");
    let mut server = scene.start("report out");
    let mut url = String::new();
    BufReader::new(server.stdout.take().unwrap()).read_line(&mut url).unwrap();
    let url = url.trim();
    let address = url.trim_start_matches("http://").trim_end_matches('/');
    let page = get(url, address);
    assert!(page.starts_with("HTTP/1.1 200 OK\r\n"), "{page}");
    assert!(page.ends_with(&String::from_utf8(scene.read("out/report.html")).unwrap()));
    assert!(get(url, "evil.example").starts_with("HTTP/1.1 403 Forbidden\r\n"));
    // SAFETY: the process id is that of a child that was not waited for yet, so no other process can have
    // this id.
    unsafe { libc::kill(server.id() as i32, libc::SIGINT) };
    assert!(server.wait().unwrap().success());
}
