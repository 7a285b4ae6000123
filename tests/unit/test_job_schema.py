import json
import re

import pytest
from hypothesis import HealthCheck, given, settings

from tests.unit.jobs import JOBS, ONE_PROBLEM, changed
from unified.job import JobSpec
from unified.metrics import HIGHER_IS_BETTER, METRIC_NAMES


def test_the_schema_knows_every_field_and_nothing_else():
    schema = JobSpec.json_schema()
    assert list(schema["properties"]) == list(JobSpec.model_fields)
    assert set(schema["required"]) == {"name", "model", "data", "loss", "optimizer", "batch_size"}
    assert schema["additionalProperties"] is False
    assert schema["title"] == "job.json"
    definitions = schema["$defs"]
    assert definitions["DataSpec"]["additionalProperties"] is False
    assert [kind["type"] for kind in definitions["LossSpec"]["anyOf"]] == ["string", "object"]
    assert definitions["EarlyStopping"]["properties"]["metric"]["enum"] == list(HIGHER_IS_BETTER)
    assert schema["properties"]["metrics"]["items"]["enum"] == list(METRIC_NAMES)
    references = re.findall(r'"#/\$defs/(\w+)"', json.dumps(schema))
    assert set(references) <= set(definitions)


@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(mapping=JOBS)
def test_every_job_as_written_and_as_returned_fits_the_schema(mapping):
    schema = JobSpec.json_schema()
    job = JobSpec.parse(mapping)
    for instance in (json.loads(json.dumps(mapping)), job.to_json()):
        assert fits(instance, schema, schema["$defs"])


@pytest.mark.parametrize(
    ("change", "code", "field"),
    [row for row in ONE_PROBLEM if row[1] in ("E-TYPE", "E-MISSING", "E-FIELD") and "." not in row[2]],
    ids=lambda part: str(part)[:40],
)
def test_mistakes_of_form_do_not_fit_the_schema(change, code, field):
    if field == "epochs" and change["epochs"] == 3.0:
        pytest.skip("JSON Schema takes 3.0 for an integer")
    schema = JobSpec.json_schema()
    assert not fits(changed(**change), schema, schema["$defs"])


def fits(value, schema, definitions):
    """As much of JSON Schema as the schema of a job uses."""
    if "$ref" in schema:
        schema = definitions[schema["$ref"].removeprefix("#/$defs/")] | {
            key: part for key, part in schema.items() if key != "$ref"
        }
    unknown = schema.keys() - {
        *(
            "type",
            "enum",
            "const",
            "anyOf",
            "oneOf",
            "required",
            "properties",
            "additionalProperties",
            "items",
        ),
        *(
            "minimum",
            "maximum",
            "exclusiveMinimum",
            "minLength",
            "maxLength",
            "pattern",
            "minItems",
            "minProperties",
        ),
        *("uniqueItems", "title", "description", "default", "$defs", "$schema"),
    }
    assert not unknown
    return all(rule(value, schema, definitions) for rule in (fits_kind, fits_choice, fits_size, fits_parts))


KINDS = {
    "string": str,
    "integer": int,
    "number": (int, float),
    "boolean": bool,
    "null": type(None),
    "object": dict,
    "array": list,
}


def fits_kind(value, schema, definitions):
    kind = schema.get("type")
    return kind is None or (isinstance(value, KINDS[kind]) and (kind == "boolean" or not isinstance(value, bool)))


def fits_choice(value, schema, definitions):
    any_of, one_of = ([fits(value, part, definitions) for part in schema.get(key, [])] for key in ("anyOf", "oneOf"))
    any_fits, one_fits = any(any_of) or not any_of, sum(one_of) == 1 or not one_of
    return any_fits and one_fits and value in schema.get("enum", [value])


def fits_size(value, schema, definitions):
    if isinstance(value, int | float):
        above = value > schema["exclusiveMinimum"] if "exclusiveMinimum" in schema else True
        return above and schema.get("minimum", value) <= value <= schema.get("maximum", value)
    if isinstance(value, str):
        return len(value) >= schema.get("minLength", 0) and re.search(schema.get("pattern", ""), value)
    return True


def fits_parts(value, schema, definitions):
    if isinstance(value, list):
        return len(value) >= schema.get("minItems", 0) and all(
            fits(item, schema.get("items", {}), definitions) for item in value
        )
    if isinstance(value, dict):
        known = schema.get("properties", {})
        others = schema.get("additionalProperties", True)
        others = {} if others is True else others
        return (
            set(schema.get("required", [])) <= set(value)
            and len(value) >= schema.get("minProperties", 0)
            and (others is not False or set(value) <= set(known))
            and all(fits(part, known.get(key, others or {}), definitions) for key, part in value.items())
        )
    return True
