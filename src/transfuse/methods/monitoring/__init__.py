"""Methods that watch a deployed model: foreign inputs, watermarks, bias, prompts."""
