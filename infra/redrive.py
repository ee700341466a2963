"""Sends the S3 events of the dead-letter queue to the indexer again, and says what came of each.

    redrive.py <stack>

Credentials, region and endpoint are those of boto3: the AWS environment variables and profiles. Needs boto3, and the
permissions to describe the stack's resources, to receive and delete messages of the queue, and to invoke the indexer.

An event that the indexer takes leaves the queue; one that fails again stays there, and does not keep the rest from it.
It may have come by EventBridge, SNS or SQS.
An event may be old: the indexer looks at the bucket as it is now, so it may be sent again at any time and in any order.

Exit code: 0 all that were there are done; 1 some failed again, could not be sent or cannot be read; 2 it could not be
done.
"""

import contextlib
import json
import sys
from collections.abc import Iterator
from typing import Any
from urllib.parse import unquote_plus

import boto3
from botocore.config import Config
from botocore.exceptions import BotoCoreError, ClientError

INVOKE_SECONDS = 90  # longer than the indexer may take
INVOKES = 3  # of one event, where Lambda throttles or does not answer
HIDDEN_SECONDS = 5 * 60  # longer than all of one event's invokes take, with the waiting between them


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
    retries = {"mode": "standard", "total_max_attempts": INVOKES}
    indexer = boto3.client("lambda", config=Config(read_timeout=INVOKE_SECONDS, retries=retries))
    done, left, again = set(), {}, 0
    try:
        for message in messages(sqs, queue):
            name, handle = message["MessageId"], message["ReceiptHandle"]
            if name in left:
                left[name] = handle  # as long as it was hidden, others were being replayed
                again += 1
                if again > len(left):
                    break  # many come again before all were received: so it goes on without end
                continue
            again = 0
            wrong = None if name in done else replay(indexer, function, message["Body"])
            if wrong is None:
                done.add(name)
                sqs.delete_message(QueueUrl=queue, ReceiptHandle=handle)
            else:
                left[name] = handle
            print(f"{names(message['Body'])}: {wrong or 'done'}", flush=True)
    finally:
        for handle in left.values():
            # Others may look at it at once, if they do not already, or have taken it away.
            with contextlib.suppress(ClientError):
                sqs.change_message_visibility(QueueUrl=queue, ReceiptHandle=handle, VisibilityTimeout=0)
    print(f"{len(done)} done, {len(left)} left in the queue")
    return len(left)


def messages(sqs: Any, queue: str) -> Iterator[dict[str, Any]]:
    """The messages of the queue until it has no visible one: one at a time, as what is received is hidden only for the
    time that one takes. One that is not deleted may come again, and of many there is always one."""
    while received := sqs.receive_message(
        QueueUrl=queue, MaxNumberOfMessages=1, VisibilityTimeout=HIDDEN_SECONDS, WaitTimeSeconds=1
    ).get("Messages"):
        yield from received


def event_of(body: str) -> Any:
    """The event in a message. Lambda wraps it when a destination gets it, and not when a dead-letter queue does."""
    record = json.loads(body)
    return record["requestPayload"] if isinstance(record, dict) and "requestPayload" in record else record


def replay(indexer: Any, function: str, body: str) -> str | None:
    """Sends the event of a message to the function; returns what went wrong."""
    try:
        event = event_of(body)
    except json.JSONDecodeError:
        return "not JSON, left alone"
    try:
        answer = indexer.invoke(FunctionName=function, Payload=json.dumps(event))
        said = answer["Payload"].read().decode(errors="replace")
    except (BotoCoreError, ClientError) as error:
        # Of this event only: the others are still worth sending.
        return f"could not be sent: {error}"
    return f"failed again: {said}" if "FunctionError" in answer or failed_in_part(said) else None


def failed_in_part(said: str) -> bool:
    """Whether the function names messages of a batch that failed; it has not failed itself then."""
    try:
        return bool(json.loads(said)["batchItemFailures"])
    except (ValueError, KeyError, TypeError):
        return False


def names(body: str) -> str:
    """The objects that a message is about, for a person."""
    try:
        return ", ".join(f"s3://{bucket}/{key}" for bucket, key in objects(event_of(body)))
    except (ValueError, KeyError, TypeError, AttributeError):
        return "a message that is no S3 event"


def objects(event: Any) -> Iterator[tuple[str, str]]:
    """Bucket and key of each object that an event names, whatever it came in."""
    match event:
        case {"Records": [_, *_] as records}:
            for record in records:
                yield from objects(record)
        case {"body": str(inner)} | {"Sns": {"Message": str(inner)}} | {"Type": "Notification", "Message": str(inner)}:
            yield from objects(json.loads(inner))
        case {"s3": {"bucket": {"name": str(bucket)}, "object": {"key": str(key)}}}:
            yield bucket, unquote_plus(key)
        case {"source": "aws.s3", "detail": {"bucket": {"name": str(bucket)}, "object": {"key": str(key)}}}:
            yield bucket, key
        case _:
            raise ValueError("no S3 event")


if __name__ == "__main__":
    if len(sys.argv) != 2 or sys.argv[1].startswith("-"):
        print(__doc__)
        sys.exit(0 if sys.argv[1:] in (["--help"], ["-h"]) else 2)
    sys.exit(main(sys.argv[1]))
