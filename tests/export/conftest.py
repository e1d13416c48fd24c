import pytest
from small_encoders import ARCHITECTURES, build_encoder

from nas.export.export import export_model


@pytest.fixture(scope="session")
def exports(tmp_path_factory, tokenizer_dir):
    """Of each kind of shape an encoder and the report of its export."""
    folder = tmp_path_factory.mktemp("exports")
    encoders = {name: build_encoder(architecture) for name, architecture in ARCHITECTURES.items()}
    return {name: (encoder, export_model(encoder, tokenizer_dir, folder / name)) for name, encoder in encoders.items()}


@pytest.fixture(params=list(ARCHITECTURES))
def exported(request, exports):
    """One encoder and the report of its export."""
    return exports[request.param]
