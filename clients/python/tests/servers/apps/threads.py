"""Twenty threads share one publisher.

    threads.py EVENTS_OF_EACH
"""

from __future__ import annotations

import sys
import threading

import telling

from hailmary import Publisher

THREADS = 20

publisher = Publisher()


def publish(name: int, count: int, barrier: threading.Barrier) -> None:
    """The first events of all come at once, so that they meet no socket yet."""
    barrier.wait()
    telling.publish(publisher, count, name=name)


def main(count: int) -> None:
    barrier = threading.Barrier(THREADS)
    threads = [
        threading.Thread(target=publish, args=(name, count, barrier)) for name in range(THREADS)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    telling.publish_until_sent(publisher, name=-1)
    telling.tell(**telling.facts(publisher))


if __name__ == "__main__":
    main(int(sys.argv[1]))
