"""An OpenAI-compatible endpoint that misbehaves by seed, on the standard library alone. `python server.py --seed 1`.

What an attempt meets follows from the seed and its Idempotency-Key, so that a client that is killed and asks again
meets the same; only a 429 is given once and then withdrawn. Pictures of some hashes never get an answer, of others
never one that can be read. Prints the port it listens on, and on SIGTERM what it has served, as JSON.
"""

import argparse
import asyncio
import base64
import hashlib
import json
import os
import re
import signal
from collections import Counter

WORDS = ("red", "blue", "green", "tall", "flat", "round", "clear", "white", "cans", "boxes", "bottles", "trays", "lids")


def hash_uniform(*parts: object) -> float:
    """A number in [0, 1) decided by the parts alone."""
    digest = hashlib.blake2b("\x1f".join(map(str, parts)).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") / 2**64


class Server:
    def __init__(self, seed: int, faults: float, latency: float, stall: float, limit: str) -> None:
        self.seed, self.faults, self.latency, self.stall, self.limit = seed, faults, latency, stall, limit
        self.served: Counter[str] = Counter()
        self.attempts: Counter[str] = Counter()  # by Idempotency-Key

    async def handle(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while True:
                head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1")
                headers = dict(re.findall(r"(?m)^([\w-]+): *(.*?)\r$", head.lower()))
                body = await reader.readexactly(int(headers.get("content-length", 0)))
                status, extra, content = await self.answer(head, headers.get("idempotency-key", ""), body)
                writer.write(f"HTTP/1.1 {status}\r\nContent-Length: {len(content)}\r\n{extra}\r\n".encode() + content)
                await writer.drain()
        except (asyncio.IncompleteReadError, ConnectionError):
            pass
        finally:
            writer.close()

    async def answer(self, head: str, attempt: str, body: bytes) -> tuple[str, str, bytes]:
        """(status, headers, content) for a request."""
        if not head.startswith("POST /v1/chat/completions ") or "authorization: bearer torture" not in head.lower():
            return "401 Unauthorized", "", b'{"error": {"message": "bad key torture-key"}}'
        self.attempts[attempt] += 1
        request = json.loads(body)
        if problem := self.refusal(request):
            self.served["400"] += 1
            return "400 Bad Request", "", json.dumps({"error": {"message": problem}}).encode()
        text, picture = (part for part in request["messages"][0]["content"])
        name = hashlib.blake2b(base64.b64decode(picture["image_url"]["url"].partition(",")[2])).hexdigest()
        fate = hash_uniform(self.seed, "picture", name) if self.faults else 1.0
        draw = hash_uniform(self.seed, "attempt", attempt) if self.faults else 1.0
        if hash_uniform(self.seed, "busy", attempt) < self.faults / 2 and self.attempts[attempt] == 1:
            self.served["429"] += 1
            return "429 Too Many Requests", "Retry-After: 0.05\r\n", b'{"error": {"message": "slow down"}}'
        await asyncio.sleep(self.latency * (0.5 + hash_uniform(attempt) if self.faults else 1.0))
        if fate < 0.01 or draw < self.faults:
            self.served["500"] += 1
            return "500 Internal Server Error", "", b'{"error": {"message": "out of memory"}}'
        if draw < 1.2 * self.faults:
            self.served["stall"] += 1
            await asyncio.sleep(self.stall)
        said = json.dumps(self.reply(request, text["text"], attempt.split("-")[0]))
        if fate < 0.02 or draw < 1.7 * self.faults:
            self.served["broken"] += 1
            said = (said[: len(said) // 2], '{"captions": "none"}', "I cannot see it.")[
                int(hash_uniform(attempt, "how") * 3)
            ]
        elif draw < 2.2 * self.faults:
            self.served["repairable"] += 1
            said = f"Here it is:\n```json\n{said[:-1]},}}\n```"
        self.served["200"] += 1
        usage = {"prompt_tokens": len(text["text"]) // 4 + 100, "completion_tokens": len(said) // 4}
        choice = {"index": 0, "finish_reason": "stop", "message": {"role": "assistant", "content": said}}
        return "200 OK", "", json.dumps({"choices": [choice], "usage": usage}).encode()

    def refusal(self, request: dict) -> str:
        """What a server says that knows the length of a reply by one name alone; "" if it is content."""
        other = {"max_tokens": "max_completion_tokens", "max_completion_tokens": "max_tokens"}.get(self.limit)
        if not other or (self.limit in request and other not in request):
            return ""
        if self.limit == "max_tokens":
            return f"body.{other}: Extra inputs are not permitted"
        return f"Unsupported parameter: '{other}' is not supported with this model. Use '{self.limit}' instead."

    def reply(self, request: dict, text: str, key: str) -> dict:
        """What a good teacher would say, as far as words from a hat can."""
        form = request["response_format"]["json_schema"]["name"]
        if form in ("QuestionsReply", "PromptsReply"):
            own = {"kind": "choice", "options": ["yes", "no"], "unit": "", "answer": "yes"}
            trace = {"trace": f"one {self.words(key)}"} if form == "QuestionsReply" else {}
            number = int(re.findall(r"Write (\d+)", text)[0])
            return {
                "questions": [{"question": f"Is {self.words(key, n)} there?", **own, **trace} for n in range(number)]
            }
        asked = re.findall(r"(?m)^(\d+)\. (.*)$", text)
        if form == "CaptionsReply":
            return {"captions": [self.words(key, n) for n in range(int(re.findall(r"Write (\d+)", text)[0]))]}
        traces = [
            {"id": int(n), "trace": f"left: {self.words(key, n)}; right: {self.words(key, n, 1)}"} for n, _ in asked
        ]
        if form == "TracesReply":
            return {"traces": traces}
        return {"answers": [{**trace, "answer": self.answered(said, key)} for trace, (_, said) in zip(traces, asked)]}

    def answered(self, question: str, key: str) -> str:
        """A digit for a number, one of the options that are named, else yes or no, of which samples differ at times."""
        if "(a number" in question:
            return str(int(hash_uniform(key, question) * 9))
        options = re.findall(r"\(one of: (.*)\)", question)
        if options and options[0] != "yes, no":
            return options[0].split(", ")[int(hash_uniform(key, question) * len(options[0].split(", ")))]
        return "yes" if hash_uniform(key) < 0.9 else "no"

    def words(self, *parts: object) -> str:
        return " ".join(WORDS[int(hash_uniform(*parts, n) * len(WORDS))] for n in range(6))


async def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--faults", type=float, default=0.1, help="share of attempts that fail")
    parser.add_argument("--latency", type=float, default=0.01, help="seconds")
    parser.add_argument("--stall", type=float, default=4.0, help="seconds")
    parser.add_argument("--limit", default="", help="the one name by which the length of a reply is known")
    words = parser.parse_args()
    server = Server(words.seed, words.faults, words.latency, words.stall, words.limit)
    listening = await asyncio.start_server(server.handle, "127.0.0.1", 0, limit=1 << 26, backlog=512)
    print(listening.sockets[0].getsockname()[1], flush=True)
    ended = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, ended.set)
    await ended.wait()
    repeated = sum(number - 1 for number in server.attempts.values())
    print(json.dumps({**server.served, "attempts served again": repeated}), flush=True)
    os._exit(0)  # with whoever still waits


if __name__ == "__main__":
    asyncio.run(main())
