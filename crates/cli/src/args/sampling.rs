//! Sampling flags, which override the model's `generation_config.json`. That file overrides danlu's defaults.

use std::path::Path;

use clap::Args;
use danlu_generate::SamplingOptions;
use danlu_loader::GenerationConfig;
use danlu_model::ModelError;

use crate::diagnostic::{Diagnostic, Result};

/// Sampling flags, which override the model's `generation_config.json`.
#[derive(Args, Clone, Debug, Default)]
pub struct SamplingArgs {
    /// Sampling temperature; 0 always picks the likeliest token [default: the model's, or 0.7]
    #[arg(long, value_name = "T", help_heading = "Reply")]
    pub temperature: Option<f32>,
    /// Sample from the likeliest tokens whose probabilities sum to this [default: the model's, or 0.9]
    #[arg(long, value_name = "P", help_heading = "Reply")]
    pub top_p: Option<f32>,
    /// Sample from this many of the likeliest tokens; 0 for all [default: the model's, or 0]
    #[arg(long, value_name = "K", help_heading = "Reply")]
    pub top_k: Option<usize>,
    /// Drop tokens less probable than this fraction of the likeliest [default: the model's, or 0]
    #[arg(long, value_name = "P", help_heading = "Reply")]
    pub min_p: Option<f32>,
    /// Penalty for tokens already in the text; 1 is off [default: the model's, or 1]
    #[arg(long, value_name = "X", help_heading = "Reply")]
    pub repetition_penalty: Option<f32>,
    /// Random seed: the same seed and text give the same reply
    #[arg(long, value_name = "SEED", default_value_t = 0, help_heading = "Reply")]
    pub seed: u64,
}

impl SamplingArgs {
    /// Merges the flags, the model's `generation_config.json` in `folder`, and danlu's defaults.
    ///
    /// # Errors
    /// If the file is not JSON, or a value that is used is out of range.
    pub fn resolve(&self, folder: &Path) -> Result<SamplingOptions> {
        let model = GenerationConfig::read(folder)?;
        // Without `do_sample`, transformers ignores the sampling values of the file, and danlu does the same.
        let samples = model.flag("do_sample").map_err(correctable)?;
        let own = |flag: Option<f32>, name, ours, ok: fn(f32) -> bool, expected| match flag {
            Some(flag) => Ok::<f32, Diagnostic>(flag),
            None if samples => Ok(model.number(name, ok, expected).map_err(correctable)?.unwrap_or(ours)),
            None => Ok(ours),
        };
        let positive = |x: f32| x > 0.0 && x.is_finite();
        let sampling = SamplingOptions {
            temperature: own(self.temperature, "temperature", 0.7, |x| x >= 0.0, "0 or more")?,
            top_p: own(self.top_p, "top_p", 0.9, |x| x > 0.0 && x <= 1.0, "above 0 and at most 1")?,
            min_p: own(self.min_p, "min_p", 0.0, |x| (0.0..=1.0).contains(&x), "between 0 and 1")?,
            top_k: match self.top_k {
                Some(top_k) => top_k,
                None if samples => model.count("top_k").map_err(correctable)?.unwrap_or(0),
                None => 0,
            },
            repetition_penalty: match self.repetition_penalty {
                Some(penalty) => penalty,
                None => {
                    let penalty = model.number("repetition_penalty", positive, "above 0");
                    penalty.map_err(correctable)?.unwrap_or(1.0)
                }
            },
            seed: self.seed,
        };
        // The values of the file were checked above, so only a flag can be out of range here.
        sampling.check()?;
        Ok(sampling)
    }
}

/// Adds a hint to correct the file, or to override its value.
fn correctable(error: ModelError) -> Diagnostic {
    let hint = match &error {
        ModelError::Field { field, .. } if field == "do_sample" => {
            "correct the file, or remove it".to_owned()
        }
        ModelError::Field { field, .. } => {
            format!("correct the file, or override it with `--{}`", field.replace('_', "-"))
        }
        _ => return error.into(),
    };
    Diagnostic::from(error).with_hint(hint)
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    fn resolve(config: &str, args: &SamplingArgs) -> Result<SamplingOptions, String> {
        let folder = tempfile::tempdir().unwrap();
        fs::write(folder.path().join("generation_config.json"), config).unwrap();
        let path = folder.path().display().to_string();
        args.resolve(folder.path()).map_err(|diagnostic| diagnostic.render(false).replace(&path, "base"))
    }

    #[test]
    fn flags_win_over_the_model_and_the_model_over_ours() {
        let config = r#"{"do_sample": true, "temperature": 0.6, "top_k": 40, "top_p": null}"#;
        let found = resolve(config, &SamplingArgs::default()).unwrap();
        assert_eq!((found.temperature, found.top_k, found.top_p), (0.6, 40, 0.9));
        let args = SamplingArgs { temperature: Some(0.0), ..SamplingArgs::default() };
        assert_eq!(resolve(config, &args).unwrap().temperature, 0.0);
        let idle = r#"{"temperature": 0.6, "repetition_penalty": 1.1}"#;
        let found = resolve(idle, &SamplingArgs::default()).unwrap();
        assert_eq!((found.temperature, found.repetition_penalty), (0.7, 1.1), "without `do_sample`");
    }

    #[test]
    fn a_value_no_model_can_have_is_named_with_its_file() {
        let wrong = |config: &str| resolve(config, &SamplingArgs::default()).unwrap_err();
        assert_eq!(
            wrong(r#"{"do_sample": true, "temperature": -4}"#),
            "error: cannot use `base/generation_config.json`: `temperature` is -4, expected 0 or more\n\n\
             hint: correct the file, or override it with `--temperature`\n"
        );
        for (config, told) in [
            (r#"{"do_sample": 1}"#, "`do_sample` is 1, expected true or false"),
            (r#"{"do_sample": true, "top_k": -1}"#, "`top_k` is -1, expected a whole number, 0 or more"),
            (r#"{"do_sample": true, "top_p": "x"}"#, "`top_p` is \"x\", expected above 0 and at most 1"),
            (r#"{"repetition_penalty": 0}"#, "`repetition_penalty` is 0, expected above 0"),
            ("[]", "generation_config.json:1:1`: found [], expected an object"),
            ("{\n  \"a\": ", "generation_config.json:2:7`: found nothing, expected a value"),
        ] {
            assert!(wrong(config).contains(told), "{}", wrong(config));
        }
        let args = SamplingArgs { temperature: Some(0.5), ..SamplingArgs::default() };
        assert!(resolve(r#"{"do_sample": true, "temperature": -4}"#, &args).is_ok(), "overruled");
        let args = SamplingArgs { top_p: Some(2.0), ..SamplingArgs::default() };
        assert!(
            resolve("{}", &args).unwrap_err().starts_with("error: cannot use `top-p`: it is 2, expected")
        );
    }
}
