//! Services that no test can start: Kubernetes, AWS, Google Cloud and Vault. What the server issues is compared with the
//! published rules of each, and with the files of `deploy/relying-parties`. Each check cites its rule.

use std::collections::BTreeSet;

use assay_tests::administrator::text;
use assay_tests::openssl::openssl;
use base64::{Engine, engine::general_purpose::URL_SAFE_NO_PAD};
use http::Method;
use serde_json::{Value, json};

use super::super::revocation::Enrolled;
use super::{Host, audience, deployed, granted, permission};

/// A token as its reader sees it.
struct Token {
    text: String,
    header: Value,
    claims: Value,
}

impl Token {
    /// The token of a new machine with the label `team=release` and the permission `deploy`.
    async fn of(host: &Host<'_>, audience: &str) -> Self {
        let enrolled = host.party.enroll(&host.administrator).await;
        let (path, labels) = (
            format!("machines/{}", enrolled.machine.id()),
            json!({"labels": {"team": "release"}}),
        );
        let _labelled = host
            .administrator
            .call(Method::PATCH, &path, Some(&labels))
            .await
            .expect(200);
        let permission = permission(host, audience, "deploy").await;
        let text = granted(host, &enrolled, audience, &permission).await;
        let part = |index| {
            let part = URL_SAFE_NO_PAD.decode(text.split('.').nth(index).unwrap()).unwrap();
            serde_json::from_slice(&part).unwrap()
        };
        Self {
            header: part(0),
            claims: part(1),
            text: text.clone(),
        }
    }

    fn claim(&self, name: &str) -> String {
        text(&self.claims, name)
    }

    fn seconds(&self, name: &str) -> i64 {
        self.claims[name].as_i64().unwrap()
    }

    /// The texts of a claim that is a list.
    fn list(&self, name: &str) -> Vec<&str> {
        let list = self.claims[name]
            .as_array()
            .unwrap_or_else(|| panic!("{name} is no list"));
        list.iter().map(|each| each.as_str().unwrap()).collect()
    }
}

fn file(name: &str) -> String {
    std::fs::read_to_string(deployed(name)).unwrap()
}

fn json_file(name: &str) -> Value {
    serde_json::from_str(&file(name)).unwrap()
}

/// OpenID Connect Discovery 1.0, sections 3 and 4.3 (<https://openid.net/specs/openid-connect-discovery-1_0.html>), which
/// all of these services read: the members that are required, `issuer` is the URL that was asked and the `iss` of tokens,
/// and `jwks_uri` has the key that the token names.
async fn is_discovered(host: &Host<'_>, token: &Token) {
    let api = host.installation.api(0);
    let discovered = api.get("/.well-known/openid-configuration").await.expect(200).json();
    for required in [
        "issuer",
        "jwks_uri",
        "response_types_supported",
        "subject_types_supported",
        "id_token_signing_alg_values_supported",
    ] {
        assert!(!discovered[required].is_null(), "no {required} in {discovered}");
    }
    assert_eq!(discovered["issuer"], host.server());
    assert_eq!(token.claims["iss"], discovered["issuer"]);
    assert!(host.server().starts_with("https://"));
    let path = text(&discovered, "jwks_uri").replace(&host.server(), "");
    let keys = api.get(&path).await.expect(200).json();
    let keys = keys["keys"].as_array().unwrap();
    let key = keys.iter().find(|key| key["kid"] == token.header["kid"]).unwrap();
    assert_eq!((&key["kty"], &key["crv"]), (&json!("EC"), &json!("P-256")));
    assert_eq!(token.header["alg"], "ES256");
    let algorithms = discovered["id_token_signing_alg_values_supported"].as_array().unwrap();
    assert!(algorithms.contains(&token.header["alg"]), "{discovered}");
}

/// <https://kubernetes.io/docs/reference/access-authn-authz/authentication/#using-authentication-configuration>
#[tokio::test]
async fn kubernetes_finds_the_claims_that_its_configuration_names() {
    let host = Host::new().await;
    let token = Token::of(&host, &audience()).await;
    is_discovered(&host, &token).await;
    let configuration = file("kubernetes/authentication.yaml");

    // "must match the issuer.url", which begins with https://; "at least one of the entries in issuer.audiences must match
    // the aud claim"; exp is required.
    assert!(configuration.contains("url: https://assay.example.com\n"));
    assert_eq!(token.list("aud").len(), 1);
    assert!(token.seconds("exp") > token.seconds("iat"));

    // The claim of the user name is a text and is required; groups are a text or a list of texts; uid is a text. "if
    // username.claim is set, username.prefix is required", and the same for groups.
    let mapped = |claim: &str| configuration.contains(&format!("claim: {claim}\n"));
    assert!(
        mapped("sub") && mapped("permissions") && mapped("machine_id"),
        "{configuration}"
    );
    assert_eq!(configuration.matches("prefix: ").count(), 2);
    assert_eq!(token.list("permissions"), ["deploy"]);
    assert!(!token.claim("machine_id").is_empty());

    // The prefix system: is reserved for Kubernetes. A permission cannot become a group of it, because of the prefix.
    assert!(token.claim("sub").starts_with("spiffe://"));
    assert!(configuration.contains("prefix: \"assay:\"\n"));

    // A claim that an expression reads must be there.
    assert!(configuration.contains("claims.assurance in ['verified', 'attested']"));
    assert!(["asserted", "verified", "attested"].contains(&token.claim("assurance").as_str()));
}

/// <https://docs.aws.amazon.com/STS/latest/APIReference/API_AssumeRoleWithWebIdentity.html>,
/// <https://docs.aws.amazon.com/IAM/latest/UserGuide/id_roles_providers_create_oidc.html> and
/// <https://docs.aws.amazon.com/IAM/latest/UserGuide/id_session-tags.html>
#[tokio::test]
async fn aws_finds_web_identities_within_its_limits() {
    let host = Host::new().await;
    let form = json_file("aws/audience.json");
    let _created = host.administrator.create("audiences", &form).await;
    let token = Token::of(&host, &text(&form, "audience")).await;
    is_discovered(&host, &token).await;

    // "The URL should not contain a port number." The provider's name in the role's policy is the URL without https://.
    let policy = json_file("aws/web-identity-role.json");
    let statement = &policy["Statement"][0];
    let provider = text(&statement["Principal"], "Federated");
    let (_, provider) = provider.split_once(":oidc-provider/").unwrap();
    assert!(!provider.contains([':', '?']), "{provider}");
    let equals = &statement["Condition"]["StringEquals"];
    assert_eq!(equals[format!("{provider}:aud")], token.claims["aud"]);
    let subject = text(&statement["Condition"]["StringLike"], &format!("{provider}:sub"));
    assert!(token.claim("sub").starts_with(subject.trim_end_matches('*')));

    // A client id has at most 255 characters, and `aud` is that text. WebIdentityToken has 4 to 20,000 characters.
    assert!(token.claim("aud").len() <= 255);
    assert!((4..=20_000).contains(&token.text.len()));

    // Session tags: lists of texts under principal_tags; at most 50, keys of at most 128 and values of at most 256
    // characters of letters, digits, spaces and _.:/=+-@. Transitive keys are keys of them. The policy must allow
    // sts:TagSession.
    let tags = &token.claims["https://aws.amazon.com/tags"];
    let principal = tags["principal_tags"].as_object().unwrap();
    assert!(principal.len() <= 50);
    let allowed = |text: &str| text.chars().all(|c| c.is_alphanumeric() || " _.:/=+-@".contains(c));
    for (key, values) in principal {
        let [value] = &values.as_array().unwrap()[..] else {
            panic!("{key} has not one value: {values}");
        };
        let value = value.as_str().unwrap();
        assert!(key.len() <= 128 && value.len() <= 256, "{key}: {value}");
        assert!(allowed(key) && allowed(value), "{key}: {value}");
    }
    let transitive = tags["transitive_tag_keys"].as_array().unwrap();
    assert!(
        transitive
            .iter()
            .all(|key| principal.contains_key(key.as_str().unwrap())),
        "{tags}"
    );
    assert!(
        statement["Action"]
            .as_array()
            .unwrap()
            .contains(&json!("sts:TagSession"))
    );
    assert_eq!(equals["aws:RequestTag/team"], principal["team"][0]);
}

/// OpenSSL's report on a certificate.
async fn read(file: &str) -> String {
    let (_, said) = openssl(&["x509", "-in", file, "-noout", "-text", "-nameopt", "RFC2253"]).await;
    said
}

/// <https://docs.aws.amazon.com/rolesanywhere/latest/userguide/trust-model.html>
#[tokio::test]
async fn roles_anywhere_finds_certificates_as_it_requires_them() {
    let host = Host::new().await;
    let Enrolled { machine, chain, .. } = host.party.enroll(&host.administrator).await;

    // End entity certificates: X.509v3, CA false, key usage digital signature, signed with SHA-256 or stronger.
    let leaf = read(chain.to_str().unwrap()).await;
    for required in [
        "Version: 3",
        "CA:FALSE",
        "Digital Signature",
        "Signature Algorithm: ecdsa-with-SHA256",
    ] {
        assert!(leaf.contains(required), "no {required} in {leaf}");
    }
    // The common name becomes the source identity of the session: 2 to 64 characters of [\w+=,.@-].
    let name = machine.id().to_string();
    assert!(leaf.contains(&format!("Subject: CN={name}\n")), "{leaf}");
    assert!((2..=64).contains(&name.len()) && name.chars().all(|c| c.is_ascii_alphanumeric() || c == '-'));

    // Certificates used as trust anchors: X.509v3, CA true, key usage certificate sign, and CRL sign to import lists.
    let root = read(&host.path("assay/roots.pem")).await;
    for required in ["Version: 3", "CA:TRUE", "Certificate Sign", "CRL Sign"] {
        assert!(root.contains(required), "no {required} in {root}");
    }

    // The URI of the SAN is the session's tag x509SAN/URI, by which the policy selects machines and no devices.
    let policy = json_file("aws/roles-anywhere-role.json");
    let uri = text(
        &policy["Statement"][0]["Condition"]["StringLike"],
        "aws:PrincipalTag/x509SAN/URI",
    );
    assert_eq!(uri, "spiffe://assay.example.com/machine/*");
    assert!(
        leaf.contains("URI:spiffe://") && leaf.contains(&format!("/machine/{name}")),
        "{leaf}"
    );
    let actions = policy["Statement"][0]["Action"].as_array().unwrap();
    let actions: BTreeSet<&str> = actions.iter().map(|action| action.as_str().unwrap()).collect();
    assert_eq!(
        actions,
        BTreeSet::from(["sts:AssumeRole", "sts:SetSourceIdentity", "sts:TagSession"])
    );
}

/// <https://cloud.google.com/iam/docs/reference/sts/rest/v1/TopLevel/token> (`subjectToken`) and
/// <https://cloud.google.com/iam/docs/reference/rest/v1/projects.locations.workloadIdentityPools.providers>
#[tokio::test]
async fn google_cloud_finds_tokens_as_it_requires_them() {
    let host = Host::new().await;
    let token = Token::of(&host, &audience()).await;
    is_discovered(&host, &token).await;
    let provider = json_file("gcp/provider.json");

    // Headers: kid, and alg "must be RS256 or ES256".
    assert!(!text(&token.header, "kid").is_empty());
    assert_eq!(token.header["alg"], "ES256");

    // "iat must be in the past", and "exp must be less than 48 hours after iat".
    assert!(token.seconds("exp") - token.seconds("iat") < 48 * 60 * 60);

    // google.subject "cannot exceed 127 bytes"; google.groups are a list of texts; expressions read assertion.CLAIM.
    let mapping = provider["attributeMapping"].as_object().unwrap();
    assert_eq!(mapping["google.subject"], "assertion.sub");
    assert!(token.claim("sub").len() <= 127);
    assert_eq!(mapping["google.groups"], "assertion.permissions");
    assert_eq!(token.list("permissions"), ["deploy"]);
    for expression in mapping.values() {
        let claim = expression.as_str().unwrap().strip_prefix("assertion.").unwrap();
        assert!(!token.claims[claim].is_null(), "no {claim}");
    }
    // The condition has at most 4096 characters.
    assert!(text(&provider, "attributeCondition").len() <= 4096);

    // issuerUri is https, and at most 10 audiences of at most 256 characters are allowed.
    assert!(text(&provider["oidc"], "issuerUri").starts_with("https://"));
    let audiences = provider["oidc"]["allowedAudiences"].as_array().unwrap();
    assert!(audiences.len() <= 10 && token.list("aud")[0].len() <= 256);
}

/// <https://developer.hashicorp.com/vault/api-docs/auth/jwt> and <https://openbao.org/api-docs/auth/jwt/>
#[tokio::test]
async fn vault_finds_the_claims_that_its_role_names() {
    let host = Host::new().await;
    let token = Token::of(&host, &audience()).await;
    is_discovered(&host, &token).await;
    let (configuration, role) = (json_file("vault/config.json"), json_file("vault/role.json"));

    // oidc_discovery_url is "without any .well-known component", bound_issuer is `iss`, and jwt_supported_algs has the
    // algorithm.
    assert_eq!(configuration["oidc_discovery_url"], "https://assay.example.com");
    assert_eq!(configuration["bound_issuer"], configuration["oidc_discovery_url"]);
    assert_eq!(configuration["jwt_supported_algs"], json!([token.header["alg"]]));

    // role_type jwt requires bound_audiences, of which one must be in `aud`; user_claim is a text and "uniquely identifies
    // the user"; groups_claim is a list of texts.
    assert_eq!(role["role_type"], "jwt");
    assert_eq!(role["bound_audiences"].as_array().unwrap().len(), 1);
    assert!(!token.claim(&text(&role, "user_claim")).is_empty());
    assert_eq!(token.list(&text(&role, "groups_claim")), ["deploy"]);
    for claim in role["bound_claims"].as_object().unwrap().keys() {
        assert!(!token.claim(claim).is_empty());
    }
    for claim in role["claim_mappings"].as_object().unwrap().keys() {
        assert!(!token.claim(claim).is_empty());
    }
}
