//! The linear projections of a decoder layer.

use std::fmt;

/// A linear projection of a decoder layer, with its name in the checkpoint.
#[derive(Copy, Clone, Eq, PartialEq, Hash, Debug, Ord, PartialOrd)]
pub enum Projection {
    /// Queries, `(NH * HS, C)`.
    QProj,
    /// Keys, `(KH * HS, C)`.
    KProj,
    /// Values, `(KH * HS, C)`.
    VProj,
    /// Attention output, `(C, NH * HS)`.
    OProj,
    /// Feed-forward input to which the activation is applied, `(intermediate, C)`.
    GateProj,
    /// Feed-forward input that is multiplied by the activated gate, `(intermediate, C)`.
    UpProj,
    /// Feed-forward output, `(C, intermediate)`.
    DownProj,
    /// Queries, keys and values in one weight, `((NH + 2 * KH) * HS, C)`. Its rows are those of q, k and v.
    QkvProj,
    /// Gate and up in one weight, `(2 * intermediate, C)`. Its rows are those of gate and up.
    GateUpProj,
}

impl Projection {
    /// All projections of all families. [`ModelConfig::projections`](crate::ModelConfig::projections) returns
    /// those of one model.
    pub const ALL: [Self; 9] = [
        Self::QProj,
        Self::KProj,
        Self::VProj,
        Self::OProj,
        Self::GateProj,
        Self::UpProj,
        Self::DownProj,
        Self::QkvProj,
        Self::GateUpProj,
    ];

    /// Returns the name in a checkpoint and in `target_modules`: `q_proj`.
    pub fn name(self) -> &'static str {
        match self {
            Self::QProj => "q_proj",
            Self::KProj => "k_proj",
            Self::VProj => "v_proj",
            Self::OProj => "o_proj",
            Self::GateProj => "gate_proj",
            Self::UpProj => "up_proj",
            Self::DownProj => "down_proj",
            Self::QkvProj => "qkv_proj",
            Self::GateUpProj => "gate_up_proj",
        }
    }

    /// Returns the projection with this checkpoint name.
    pub fn from_name(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|p| p.name() == name)
    }

    /// Returns the index in [`Projection::ALL`], for tables with one entry per projection.
    pub fn index(self) -> usize {
        self as usize
    }

    /// Returns the submodule of the layer: `self_attn` or `mlp`.
    pub fn block(self) -> &'static str {
        match self {
            Self::QProj | Self::KProj | Self::VProj | Self::OProj | Self::QkvProj => "self_attn",
            Self::GateProj | Self::UpProj | Self::DownProj | Self::GateUpProj => "mlp",
        }
    }

    /// Returns whether the projection comes before attention.
    pub fn is_before_attention(self) -> bool {
        matches!(self, Self::QProj | Self::KProj | Self::VProj | Self::QkvProj)
    }

    /// Returns the module's full name in a checkpoint: `model.layers.3.self_attn.q_proj`.
    pub fn module_path(self, layer: usize) -> String {
        format!("model.layers.{layer}.{}.{}", self.block(), self.name())
    }

    /// Returns the weight's full name in a checkpoint: `model.layers.3.self_attn.q_proj.weight`.
    pub fn weight_name(self, layer: usize) -> String {
        format!("{}.weight", self.module_path(layer))
    }

    /// Returns the bias's full name in a checkpoint: `model.layers.3.self_attn.q_proj.bias`.
    pub fn bias_name(self, layer: usize) -> String {
        format!("{}.bias", self.module_path(layer))
    }
}

impl fmt::Display for Projection {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_name_leads_back_to_its_projection() {
        for (i, p) in Projection::ALL.into_iter().enumerate() {
            assert_eq!(Projection::from_name(p.name()), Some(p));
            assert_eq!(p.index(), i);
        }
        assert_eq!(Projection::from_name("q_porj"), None);
    }

    #[test]
    fn module_paths_are_the_checkpoints() {
        assert_eq!(Projection::QProj.module_path(3), "model.layers.3.self_attn.q_proj");
        assert_eq!(Projection::DownProj.weight_name(0), "model.layers.0.mlp.down_proj.weight");
    }
}
