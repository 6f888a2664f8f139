"""The web application. Flask, because all of it fits on a page.

A request writes one transaction and throws an event or two at the bus. It speaks
to no broker: what must not be lost is in its transaction.
"""

from __future__ import annotations

import json
import os

from flask import Flask, Response, request
from flask.typing import ResponseReturnValue

from . import database, events, search, settings

app = Flask(__name__)


@app.post("/users/<name>")
def sign_up(name: str) -> ResponseReturnValue:
    database.add_user(database.of_thread(settings.application()), name)
    return {"name": name}, 201


@app.post("/photos")
def upload() -> ResponseReturnValue:
    user, title = request.args["user"], request.args["title"]
    photo = database.add_photo(
        database.of_thread(settings.application()), user, title, request.get_data()
    )
    events.document("photo", photo, title)
    events.signal("upload", user)
    return {"id": photo}, 201


@app.post("/photos/<int:photo>/comments")
def comment(photo: int) -> ResponseReturnValue:
    user, text = request.args["user"], request.get_data(as_text=True)
    row = database.add_comment(database.of_thread(settings.application()), photo, user, text)
    events.document("comment", row, text)
    events.signal("comment", user)
    return {"id": row}, 201


@app.get("/search")
def find() -> ResponseReturnValue:
    events.signal("search", request.args["user"])
    return {"found": search.find(settings.index(), request.args["words"])}


@app.after_request
def tell_counts(response: Response) -> Response:
    """Tells whoever measures what became of the events of this process."""
    stats = events.stats()
    others = stats.dropped - stats.refused
    counts = {"offered": stats.offered, "refused": stats.refused, "otherwise dropped": others}
    response.headers["Hail-Mary"] = json.dumps({"process": os.getpid(), **counts})
    return response
