//! Tests the load test of a server.

mod support;

use danlu_serve::{LoadTest, ServeOptions};
use support::{options, served, start};

#[test]
fn a_round_counts_the_tokens_of_every_client() {
    let top = tempfile::tempdir().unwrap();
    let adapters = vec![served(top.path(), "poet", 3), served(top.path(), "monk", 4)];
    let server = start(ServeOptions { adapters, api_key: Some("key".to_owned()), ..options() });
    let test = LoadTest { address: server.address, api_key: Some("key".to_owned()), tokens: 5 };
    let models = ["poet", "monk", "base", "poet"].map(str::to_owned);
    let round = test.run(&models, 0).unwrap();
    assert_eq!(round.first_tokens.len(), 4);
    assert!(round.tokens_per_second > 0.0);
    let metrics = server.request("GET", "/metrics", &[("authorization", "Bearer key")], "").body;
    assert!(metrics.contains("danlu_adapter_generation_tokens_total{adapter=\"poet\"} 10\n"), "{metrics}");
    let refused = LoadTest { api_key: None, ..test }.run(&models[..1], 1).unwrap_err().to_string();
    assert!(refused.contains("401"), "{refused}");
}
