"""openapi.json as such."""

from typing import TYPE_CHECKING

import openapi_spec_validator

if TYPE_CHECKING:
    from conftest import Document


def test_the_document_is_openapi_3_1(document: "Document") -> None:
    assert document.content["openapi"].startswith("3.1.")
    openapi_spec_validator.validate(document.content, cls=openapi_spec_validator.OpenAPIV31SpecValidator)
