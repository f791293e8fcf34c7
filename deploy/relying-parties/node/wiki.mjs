// Lets machines in whose certificate is not revoked, and whose grant token belongs to the certificate and has the
// permission "read". Needs jose: npm install jose. Run it with NODE_EXTRA_CA_CERTS=/etc/assay/roots.pem if the Assay
// server's TLS certificate comes from its own CA.
import { createHash } from 'node:crypto'
import { readFileSync, watch } from 'node:fs'
import { createServer } from 'node:https'
import { createRemoteJWKSet, errors, jwtVerify } from 'jose'

const SERVER = 'https://assay.example.com'
const AUDIENCE = 'https://wiki.example.com'
const TRUST = '/etc/assay'

const keys = createRemoteJWKSet(new URL('/.well-known/jwks.json', SERVER))

// What the machine with this certificate (DER) may do here.
async function grant(token, certificate) {
  const required = { algorithms: ['ES256'], typ: 'JWT', requiredClaims: ['exp', 'cnf'] }
  const rules = { issuer: SERVER, audience: AUDIENCE, ...required }
  const { payload } = await jwtVerify(token, keys, rules)
  if (payload.cnf['x5t#S256'] !== createHash('sha256').update(certificate).digest('base64url')) {
    throw new errors.JWTInvalid("the token is another machine's, or of a former certificate")
  }
  return payload
}

// Node reads one list from a text, and needs the list of every CA of the path: give it each list alone.
function machines() {
  const text = readFileSync(`${TRUST}/crls.pem`, 'latin1')
  const lists = text.match(/-----BEGIN X509 CRL-----[^-]+-----END X509 CRL-----/g)
  if (!lists) throw new Error('no lists')
  return { ca: readFileSync(`${TRUST}/roots.pem`), crl: lists }
}

const identity = { cert: readFileSync('/etc/wiki/server.pem'), key: readFileSync('/etc/wiki/server.key') }

const server = createServer({ ...identity, ...machines(), requestCert: true, rejectUnauthorized: true })
server.on('request', async (request, response) => {
  const answer = (status, body) => {
    response.writeHead(status, { 'content-type': 'application/json' }).end(JSON.stringify(body))
  }
  const token = /^bearer +(\S+)$/i.exec(request.headers.authorization ?? '')?.[1]
  if (!token) return answer(401, { error: 'no token' })
  try {
    const claims = await grant(token, request.socket.getPeerCertificate().raw)
    if (!claims.permissions.includes('read')) return answer(403, { error: 'read is not granted' })
    answer(200, { machine: claims.machine_id, assurance: claims.assurance })
  } catch (error) {
    const refused = error instanceof errors.JOSEError && !(error instanceof errors.JWKSTimeout)
    answer(refused ? 401 : 503, { error: error.message })
  }
})

// The folder and not a file: a replaced file is another file.
watch(TRUST, () => {
  try {
    server.setSecureContext({ ...identity, ...machines() })
  } catch (error) {
    console.error(`the lists of before stay in use: ${error.message}`)
  }
})

server.listen(8443, '127.0.0.1', () => console.log('serving on port', server.address().port))
