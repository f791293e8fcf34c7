"""Lets machines in whose certificate is not revoked, and whose grant token belongs to the certificate and has the
permission "read". Needs PyJWT with cryptography: pip install 'pyjwt[crypto]'."""

import base64, functools, hashlib, http.server, json, os, ssl, urllib.request

import jwt

SERVER = "https://assay.example.com"
AUDIENCE = "https://wiki.example.com"
ROOTS, LISTS = "/etc/assay/roots.pem", "/etc/assay/crls.pem"

# The roots of the server's TLS certificate, which may come from another CA.
trust = ssl.create_default_context(cafile=ROOTS)
with urllib.request.urlopen(f"{SERVER}/.well-known/openid-configuration", context=trust, timeout=10) as answer:
    discovery = json.load(answer)
if discovery["issuer"] != SERVER:
    raise SystemExit(f"{SERVER} says that it is {discovery['issuer']}")
keys = jwt.PyJWKClient(discovery["jwks_uri"], ssl_context=trust, lifespan=3600, timeout=10)


def grant(token: str, certificate: bytes) -> dict:
    """What the machine with this certificate (DER) may do here; raises jwt.PyJWTError."""
    if jwt.get_unverified_header(token).get("typ") != "JWT":
        raise jwt.InvalidTokenError("not a grant token")
    key = keys.get_signing_key_from_jwt(token)
    required = {"require": ["iss", "aud", "exp", "cnf"]}
    claims = jwt.decode(token, key, algorithms=["ES256"], audience=AUDIENCE, issuer=SERVER, options=required)
    digest = base64.urlsafe_b64encode(hashlib.sha256(certificate).digest()).rstrip(b"=").decode()
    if claims["cnf"].get("x5t#S256") != digest:
        raise jwt.InvalidTokenError("the token is another machine's, or of a former certificate")
    return claims


@functools.lru_cache(maxsize=1)
def tls(_version: tuple) -> ssl.SSLContext:
    """Accepts certificates under the roots that no list revokes. A list of every CA of the path must be there."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain("/etc/wiki/server.pem", "/etc/wiki/server.key")
    context.load_verify_locations(ROOTS)
    context.load_verify_locations(LISTS)
    context.verify_flags |= ssl.VERIFY_CRL_CHECK_CHAIN
    context.verify_mode = ssl.CERT_REQUIRED
    return context


def version(file: str) -> tuple:
    status = os.stat(file)
    return status.st_ino, status.st_mtime_ns


class Server(http.server.ThreadingHTTPServer):
    def get_request(self):
        connection, address = super().get_request()
        # A context reads the files once, so a replaced file needs a new one. It knows no session of the old one.
        context = tls((version(ROOTS), version(LISTS)))
        return context.wrap_socket(connection, server_side=True, do_handshake_on_connect=False), address


class Wiki(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        scheme, _, token = self.headers.get("Authorization", "").partition(" ")
        try:
            if scheme.lower() != "bearer":
                raise jwt.InvalidTokenError("no token")
            claims = grant(token, self.connection.getpeercert(binary_form=True))
        except jwt.PyJWKClientConnectionError as error:
            return self.answer(503, {"error": str(error)})
        except jwt.PyJWTError as error:
            return self.answer(401, {"error": str(error)})
        if "read" not in claims["permissions"]:
            return self.answer(403, {"error": "read is not granted"})
        self.answer(200, {"machine": claims["machine_id"], "assurance": claims["assurance"]})

    def answer(self, status: int, body: dict):
        content = json.dumps(body).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)


server = Server(("127.0.0.1", 8443), Wiki)
print("serving on port", server.server_port, flush=True)
server.serve_forever()
