"""One class in a service that exists: at most five requests a minute from each address.

Run it from the folder above this one, and ask six times:

    gunicorn examples.one_class:application --bind 127.0.0.1:8000 --threads 16
    curl -i http://127.0.0.1:8000/

The sixth answer is a 429 that says in `Retry-After` when to come back.
"""

from aigw_middleware import RateLimiter


def service(environ, start_response):
    """Answer as the service has always done; it knows nothing of limits."""
    body = b"It is a lovely day.\n"
    start_response("200 OK", [("Content-Type", "text/plain"), ("Content-Length", str(len(body)))])
    return [body]


application = RateLimiter(service, "5/min", by="ip")
