"""From a trained run to a bundle: the deployed graph, its formats, the edge variants, the parity gate."""
