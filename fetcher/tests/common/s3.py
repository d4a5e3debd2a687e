# A store of moto's with one bucket and one user who may do everything in it; prints its port and the user's keys.
import json
import os
import sys
import threading

os.environ["INITIAL_NO_AUTH_ACTION_COUNT"] = "0"  # signatures are checked from the first request on
sys.path.insert(0, sys.argv[1])
from moto.core import DEFAULT_ACCOUNT_ID
from moto.iam.models import iam_backends
from moto.moto_server.werkzeug_app import DomainDispatcherApplication, create_backend_app
from moto.s3.models import s3_backends
from werkzeug.serving import make_server

iam = iam_backends[DEFAULT_ACCOUNT_ID]["aws"]
everything = {"Effect": "Allow", "Action": "s3:*", "Resource": "*"}
iam.create_user("aws", "mica")
iam.put_user_policy("mica", "all", json.dumps({"Version": "2012-10-17", "Statement": everything}))
key = iam.create_access_key("mica")
s3_backends[DEFAULT_ACCOUNT_ID]["aws"].create_bucket("bucket", "us-east-1")
app, lock = DomainDispatcherApplication(create_backend_app), threading.Lock()


def one_at_a_time(environ, start_response):
    with lock:  # moto compares and sets without one
        return list(app(environ, start_response))


server = make_server("127.0.0.1", 0, one_at_a_time, threaded=True)
print(server.server_port, key.access_key_id, key.secret_access_key, flush=True)
server.serve_forever()
