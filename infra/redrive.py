"""Sends the S3 events of the dead-letter queue to the indexer again, and says what came of each.

    redrive.py <stack>

Credentials, region and endpoint are those of boto3: the AWS environment variables and profiles. Needs boto3, and the
permissions to describe the stack's resources, to receive and delete messages of the queue, and to invoke the indexer.

An event that the indexer takes leaves the queue; one that fails again stays there. An event may be old: the indexer looks
at the bucket as it is now, so it may be sent again at any time and in any order.

Exit code: 0 all that were there are done; 1 some failed again or cannot be read; 2 it could not be done.
"""

import json
import sys
from collections.abc import Iterator
from typing import Any
from urllib.parse import unquote_plus

import boto3
from botocore.config import Config
from botocore.exceptions import BotoCoreError, ClientError

# Longer than the indexer may take.
INVOKE_SECONDS = 90
HIDDEN_SECONDS = 120


def main(stack: str) -> int:
    try:
        queue, function = resource(stack, "DeadLetters"), resource(stack, "IndexerFunction")
        left = redrive(queue, function)
    except (BotoCoreError, ClientError) as error:
        print(f"cannot replay the dead letters of {stack}: {error}", file=sys.stderr)
        return 2
    return 1 if left else 0


def resource(stack: str, logical_id: str) -> str:
    """The deployed resource: a queue's URL, a function's name."""
    described = boto3.client("cloudformation").describe_stack_resource(StackName=stack, LogicalResourceId=logical_id)
    return described["StackResourceDetail"]["PhysicalResourceId"]


def redrive(queue: str, function: str) -> int:
    """Sends each message's event to the function; returns how many messages are left."""
    sqs = boto3.client("sqs")
    done, left = 0, []
    for message in messages(sqs, queue):
        wrong = replay(function, message["Body"])
        if wrong is None:
            sqs.delete_message(QueueUrl=queue, ReceiptHandle=message["ReceiptHandle"])
            done += 1
        else:
            left.append(message["ReceiptHandle"])
        print(f"{names(message['Body'])}: {wrong or 'done'}", flush=True)
    for handle in left:
        # Others may look at it at once.
        sqs.change_message_visibility(QueueUrl=queue, ReceiptHandle=handle, VisibilityTimeout=0)
    print(f"{done} done, {len(left)} left in the queue")
    return len(left)


def messages(sqs: Any, queue: str) -> Iterator[dict[str, Any]]:
    """All messages of the queue, each once: what is received is hidden from the next look."""
    seen = set()
    while True:
        received = sqs.receive_message(
            QueueUrl=queue, MaxNumberOfMessages=10, VisibilityTimeout=HIDDEN_SECONDS, WaitTimeSeconds=1
        ).get("Messages", [])
        fresh = [message for message in received if message["MessageId"] not in seen]
        if not fresh:
            return
        seen.update(message["MessageId"] for message in fresh)
        yield from fresh


def event_of(body: str) -> Any:
    """The event in a message. Lambda wraps it when a destination gets it, and not when a dead-letter queue does."""
    record = json.loads(body)
    return record["requestPayload"] if isinstance(record, dict) and "requestPayload" in record else record


def replay(function: str, body: str) -> str | None:
    """Sends the event of a message to the function; returns what went wrong."""
    try:
        event = event_of(body)
    except json.JSONDecodeError:
        return "not JSON, left alone"
    client = boto3.client("lambda", config=Config(read_timeout=INVOKE_SECONDS, retries={"max_attempts": 0}))
    answer = client.invoke(FunctionName=function, Payload=json.dumps(event))
    said = answer["Payload"].read().decode(errors="replace")
    return f"failed again: {said}" if "FunctionError" in answer else None


def names(body: str) -> str:
    """The objects that a message is about, for a person."""
    try:
        records = event_of(body)["Records"]
        objects = [(record["s3"]["bucket"]["name"], record["s3"]["object"]["key"]) for record in records]
        return ", ".join(f"s3://{bucket}/{unquote_plus(key)}" for bucket, key in objects)
    except (ValueError, KeyError, TypeError):
        return "a message that is no S3 event"


if __name__ == "__main__":
    if len(sys.argv) != 2 or sys.argv[1].startswith("-"):
        print(__doc__)
        sys.exit(0 if sys.argv[1:] in (["--help"], ["-h"]) else 2)
    sys.exit(main(sys.argv[1]))
