// Lets active machines in. Asks for the status of the certificate at each request, by OCSP at the URL in the
// certificate. Run it with: java Wiki.java
import com.sun.net.httpserver.HttpExchange;
import com.sun.net.httpserver.HttpsConfigurator;
import com.sun.net.httpserver.HttpsExchange;
import com.sun.net.httpserver.HttpsParameters;
import com.sun.net.httpserver.HttpsServer;
import java.io.FileInputStream;
import java.io.IOException;
import java.net.InetSocketAddress;
import java.nio.charset.StandardCharsets;
import java.security.GeneralSecurityException;
import java.security.KeyStore;
import java.security.cert.CertPathBuilder;
import java.security.cert.CertStore;
import java.security.cert.CertificateFactory;
import java.security.cert.CollectionCertStoreParameters;
import java.security.cert.PKIXBuilderParameters;
import java.security.cert.PKIXRevocationChecker;
import java.security.cert.X509CertSelector;
import java.security.cert.X509Certificate;
import java.util.EnumSet;
import java.util.List;
import javax.net.ssl.CertPathTrustManagerParameters;
import javax.net.ssl.KeyManagerFactory;
import javax.net.ssl.SSLContext;
import javax.net.ssl.SSLPeerUnverifiedException;
import javax.net.ssl.SSLSession;
import javax.net.ssl.TrustManagerFactory;

public class Wiki {
    static final String ROOTS = "/etc/assay/roots.pem";
    // openssl pkcs12 -export -in server.pem -inkey server.key -out server.p12
    static final String IDENTITY = "/etc/wiki/server.p12";
    static final char[] PASSWORD = "changeit".toCharArray();

    public static void main(String[] arguments) throws Exception {
        var roots = roots();
        var tls = SSLContext.getInstance("TLS");
        tls.init(identity().getKeyManagers(), machines(roots).getTrustManagers(), null);
        var server = HttpsServer.create(new InetSocketAddress("127.0.0.1", 8443), 0);
        server.setHttpsConfigurator(new HttpsConfigurator(tls) {
            @Override
            public void configure(HttpsParameters parameters) {
                var required = getSSLContext().getDefaultSSLParameters();
                required.setNeedClientAuth(true);
                parameters.setSSLParameters(required);
            }
        });
        server.createContext("/", exchange -> {
            var session = ((HttpsExchange) exchange).getSSLSession();
            // TLS does not ask about a resumed session, nor again during a connection.
            if (isActive(session, roots)) {
                answer(exchange, 200, session.getPeerPrincipal().getName());
            } else {
                answer(exchange, 403, "the certificate is not valid");
            }
        });
        server.start();
        System.out.println("serving on port " + server.getAddress().getPort());
    }

    static KeyManagerFactory identity() throws Exception {
        var keys = KeyManagerFactory.getInstance("PKIX");
        try (var file = new FileInputStream(IDENTITY)) {
            var store = KeyStore.getInstance("PKCS12");
            store.load(file, PASSWORD);
            keys.init(store, PASSWORD);
        }
        return keys;
    }

    static KeyStore roots() throws Exception {
        var roots = KeyStore.getInstance(KeyStore.getDefaultType());
        roots.load(null, null);
        try (var file = new FileInputStream(ROOTS)) {
            for (var root : CertificateFactory.getInstance("X.509").generateCertificates(file)) {
                roots.setCertificateEntry("root " + roots.size(), root);
            }
        }
        return roots;
    }

    // Accepts certificates under the roots of which OCSP says that they are good.
    static PKIXBuilderParameters rules(KeyStore roots) throws GeneralSecurityException {
        var parameters = new PKIXBuilderParameters(roots, new X509CertSelector());
        var revocation = (PKIXRevocationChecker) CertPathBuilder.getInstance("PKIX").getRevocationChecker();
        // The path's issuing CA is checked too, unless it is under an external root: then add ONLY_END_ENTITY.
        // Without SOFT_FAIL, a machine of which the status is unknown is refused.
        revocation.setOptions(EnumSet.of(PKIXRevocationChecker.Option.NO_FALLBACK));
        parameters.addCertPathChecker(revocation);
        return parameters;
    }

    static TrustManagerFactory machines(KeyStore roots) throws GeneralSecurityException {
        var trust = TrustManagerFactory.getInstance("PKIX");
        trust.init(new CertPathTrustManagerParameters(rules(roots)));
        return trust;
    }

    static boolean isActive(SSLSession session, KeyStore roots) throws SSLPeerUnverifiedException {
        var sent = session.getPeerCertificates();
        var machine = new X509CertSelector();
        machine.setCertificate((X509Certificate) sent[0]);
        try {
            var rules = rules(roots);
            rules.setTargetCertConstraints(machine);
            rules.addCertStore(CertStore.getInstance("Collection", new CollectionCertStoreParameters(List.of(sent))));
            CertPathBuilder.getInstance("PKIX").build(rules);
            return true;
        } catch (GeneralSecurityException error) {
            System.err.println("refused: " + error.getMessage());
            return false;
        }
    }

    static void answer(HttpExchange exchange, int status, String text) throws IOException {
        var content = (text + "\n").getBytes(StandardCharsets.UTF_8);
        exchange.sendResponseHeaders(status, content.length);
        try (var body = exchange.getResponseBody()) {
            body.write(content);
        }
    }
}
