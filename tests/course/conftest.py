import pytest


@pytest.fixture(autouse=True)
def home(tmp_path, monkeypatch):
    """Keep progress out of the developer's home, and a failed check from raising."""
    monkeypatch.setenv("MINIDS3_HOME", str(tmp_path / "home"))
    monkeypatch.delenv("PYTEST_VERSION", raising=False)
    monkeypatch.delenv("MINIDS3_STRICT", raising=False)
    return tmp_path / "home"
