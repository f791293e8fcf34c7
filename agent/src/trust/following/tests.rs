use std::sync::LazyLock;

use proptest::{collection::vec, prelude::*};
use rcgen::{
    BasicConstraints, CertificateParams, CustomExtension, DnType, ExtendedKeyUsagePurpose, GeneralSubtree, IsCa,
    Issuer, KeyPair, KeyUsagePurpose, NameConstraints,
};
use rstest::rstest;
use time::{Duration, OffsetDateTime, macros::datetime};

use super::*;

const NOW: OffsetDateTime = datetime!(2026-11-22 10:00 UTC);

/// A CA with its key and its self-signed certificate. ECDSA signatures differ at each call, so it is made once.
struct Authority {
    key: KeyPair,
    params: CertificateParams,
    certificate: CertificateDer<'static>,
}

impl Authority {
    fn new(name: &str) -> Self {
        let mut params = CertificateParams::new(Vec::new()).unwrap();
        params.distinguished_name.push(DnType::CommonName, name);
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        (params.not_before, params.not_after) = (NOW - Duration::DAY, NOW + Duration::days(3650));
        let key = KeyPair::generate().unwrap();
        let certificate = params.self_signed(&key).unwrap().der().clone();
        Self {
            key,
            params,
            certificate,
        }
    }

    /// Its self-signed certificate.
    fn root(&self) -> CertificateDer<'static> {
        self.certificate.clone()
    }

    /// A certificate of this subject and key that another CA has signed.
    fn by(&self, issuer: &Self) -> CertificateDer<'static> {
        certify(self, issuer, |_| ())
    }
}

fn certify(
    subject: &Authority,
    issuer: &Authority,
    change: impl FnOnce(&mut CertificateParams),
) -> CertificateDer<'static> {
    let mut params = subject.params.clone();
    change(&mut params);
    let issuer = Issuer::from_params(&issuer.params, &issuer.key);
    params.signed_by(&subject.key, &issuer).unwrap().der().clone()
}

fn path_length(most: u8) -> impl Fn(&mut CertificateParams) {
    move |params| params.is_ca = IsCa::Ca(BasicConstraints::Constrained(most))
}

fn after(trusted: &[&CertificateDer<'static>], bundle: &[&CertificateDer<'static>]) -> Vec<CertificateDer<'static>> {
    let [trusted, bundle] = [trusted, bundle].map(|list| list.iter().map(|certificate| (*certificate).clone()));
    followed(&trusted.collect::<Vec<_>>(), &bundle.collect::<Vec<_>>(), NOW)
}

#[test]
fn an_unrelated_root_is_not_trusted_and_removes_no_other() {
    let [honest, evil] = ["honest", "evil"].map(|name| Authority::new(name).root());
    assert_eq!(after(&[&honest], &[&honest, &evil]), std::slice::from_ref(&honest));
    assert_eq!(after(&[&honest], &[&evil]), std::slice::from_ref(&honest));
    assert_eq!(after(&[&honest], &[]), [honest]);
}

#[test]
fn a_root_that_follows_is_added_and_replaces_the_old_one_once_the_bundle_lacks_it() {
    let [one, two] = ["one", "two"].map(Authority::new);
    let (first, second, cross) = (one.root(), two.root(), two.by(&one));
    let both = [first.clone(), second.clone()];
    assert_eq!(after(&[&first], &[&first, &second, &cross]), both);
    assert_eq!(after(&[&first, &second], &[&first, &second, &cross]), both);
    assert_eq!(
        after(&[&first, &second], &[&second, &cross]),
        std::slice::from_ref(&second)
    );
    assert_eq!(after(&[&first], &[&second, &cross]), std::slice::from_ref(&second));
    assert_eq!(
        after(&[&first, &second], &[&second]),
        both,
        "nothing shows that the second one follows"
    );
    assert_eq!(
        after(&[&second], &[&first, &second, &cross]),
        [second],
        "the first one does not follow the second"
    );
}

#[test]
fn a_chain_leads_over_roots_that_the_bundle_no_longer_has() {
    let [one, two, three, four] = ["one", "two", "three", "four"].map(Authority::new);
    let bundle = [three.root(), four.root(), four.by(&three), two.by(&one), three.by(&two)];
    assert_eq!(after(&[&one.root()], &bundle.each_ref()), [three.root(), four.root()]);
    for missing in 2..bundle.len() {
        let broken: Vec<_> = (0..bundle.len())
            .filter(|at| *at != missing)
            .map(|at| &bundle[at])
            .collect();
        let expected = if missing == 2 { three.root() } else { one.root() };
        assert_eq!(after(&[&one.root()], &broken), [expected], "{missing}");
    }
}

/// What the holder of an issuing key can make: it signs for its own subject and key, and for others.
#[test]
fn the_key_of_an_issuing_ca_makes_no_root() {
    let [root, issuing, evil, deeper] = ["root", "issuing", "evil", "deeper"].map(Authority::new);
    let issuing_certificate = certify(&issuing, &root, path_length(0));
    let bundle = [
        root.root(),
        issuing_certificate.clone(),
        issuing.root(),
        evil.by(&issuing),
        evil.root(),
        deeper.by(&evil),
        deeper.root(),
    ];
    let bundle: Vec<_> = bundle.iter().collect();
    assert_eq!(after(&[&root.root()], &bundle), [root.root()]);
    assert_eq!(
        after(&[&issuing_certificate], &bundle),
        [issuing_certificate],
        "a CA file may name it"
    );
}

type Change = Box<dyn Fn(&mut CertificateParams)>;

#[rstest]
#[case::unchanged(Box::new(|_: &mut _| ()) as Change, true)]
#[case::until_now(Box::new(|params: &mut CertificateParams| params.not_after = NOW) as Change, true)]
#[case::expired(Box::new(|params: &mut CertificateParams| params.not_after = NOW - Duration::SECOND) as Change, false)]
#[case::not_yet_valid(Box::new(|params: &mut CertificateParams| params.not_before = NOW + Duration::SECOND) as Change, false)]
#[case::for_one_ca_below(Box::new(path_length(1)) as Change, true)]
#[case::for_no_ca_below(Box::new(path_length(0)) as Change, false)]
#[case::no_ca(Box::new(|params: &mut CertificateParams| params.is_ca = IsCa::ExplicitNoCa) as Change, false)]
#[case::without_constraints(Box::new(|params: &mut CertificateParams| params.is_ca = IsCa::NoCa) as Change, false)]
#[case::without_key_usage(Box::new(|params: &mut CertificateParams| params.key_usages.clear()) as Change, true)]
#[case::for_lists_alone(Box::new(|params: &mut CertificateParams| params.key_usages = vec![KeyUsagePurpose::CrlSign]) as Change, false)]
#[case::for_servers_alone(Box::new(|params: &mut CertificateParams| {
    params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
}) as Change, false)]
#[case::for_some_names(Box::new(|params: &mut CertificateParams| {
    let permitted_subtrees = vec![GeneralSubtree::DnsName("example.com".to_owned())];
    params.name_constraints = Some(NameConstraints { permitted_subtrees, excluded_subtrees: Vec::new() });
}) as Change, false)]
#[case::with_an_unknown_extension(Box::new(|params: &mut CertificateParams| {
    params.custom_extensions.push(CustomExtension::from_oid_content(&[1, 3, 9], vec![5, 0]));
}) as Change, true)]
#[case::with_an_unknown_critical_extension(Box::new(|params: &mut CertificateParams| {
    let mut extension = CustomExtension::from_oid_content(&[1, 3, 9], vec![5, 0]);
    extension.set_criticality(true);
    params.custom_extensions.push(extension);
}) as Change, false)]
#[case::another_name(Box::new(|params: &mut CertificateParams| {
    params.distinguished_name.push(DnType::CommonName, "another");
}) as Change, false)]
fn a_root_follows_by_a_certificate_that_makes_it_one(#[case] change: Change, #[case] follows: bool) {
    let [one, two] = ["one", "two"].map(Authority::new);
    let cross = certify(&two, &one, change);
    let trusted = after(&[&one.root()], &[&one.root(), &two.root(), &cross]);
    assert_eq!(trusted.contains(&two.root()), follows);
    assert!(trusted.contains(&one.root()));
}

#[test]
fn only_this_key_under_this_name_signs_and_is_certified() {
    let [one, two, same_name] = ["one", "two", "two"].map(Authority::new);
    let impostor = Authority::new("one");
    for cross in [same_name.by(&one), two.by(&impostor), two.by(&two)] {
        assert_eq!(after(&[&one.root()], &[&two.root(), &cross]), [one.root()]);
    }
    let mut damaged = two.by(&one).to_vec();
    *damaged.last_mut().unwrap() ^= 1;
    let damaged = CertificateDer::from(damaged);
    assert_eq!(after(&[&one.root()], &[&two.root(), &damaged]), [one.root()]);
}

#[test]
fn a_path_length_limits_the_chain() {
    let [one, two, three] = ["one", "two", "three"].map(Authority::new);
    for (most, follows) in [(1, false), (2, true)] {
        let limited = certify(&two, &one, path_length(most));
        let trusted = after(&[&one.root()], &[&three.root(), &limited, &three.by(&two)]);
        assert_eq!(trusted == [three.root()], follows, "{most}");
    }
    // The limit of the anchor itself is ignored, as TLS libraries do. Roots of earlier servers allow one CA below them.
    let old = certify(&one, &one, path_length(1));
    let bundle = [two.by(&one), three.by(&two), three.root()];
    assert_eq!(after(&[&old], &bundle.each_ref()), [three.root()]);
}

/// Otherwise the key of a root that was retired long ago could still add roots.
#[rstest]
#[case::until_now(NOW, true)]
#[case::expired(NOW - Duration::SECOND, false)]
fn no_root_follows_an_expired_one(#[case] not_after: OffsetDateTime, #[case] follows: bool) {
    let [one, two] = ["one", "two"].map(Authority::new);
    let old = certify(&one, &one, |params| params.not_after = not_after);
    let added = if follows { vec![two.root()] } else { Vec::new() };
    let with_both = [vec![old.clone()], added.clone()].concat();
    assert_eq!(after(&[&old], &[&old, &two.root(), &two.by(&one)]), with_both);
    let without_the_old = if follows { added } else { vec![old.clone()] };
    assert_eq!(after(&[&old], &[&two.root(), &two.by(&one)]), without_the_old);
}

#[test]
fn a_renewed_certificate_of_the_same_key_and_name_is_the_same_root() {
    let one = Authority::new("one");
    let renewed = certify(&one, &one, |params| params.not_after += Duration::DAY);
    assert_eq!(after(&[&one.root()], &[&renewed]), [one.root()]);
}

#[test]
fn what_cannot_be_read_changes_nothing() {
    let (one, nonsense) = (Authority::new("one").root(), CertificateDer::from(vec![0x30, 0x00]));
    assert_eq!(after(&[&one], &[&nonsense, &one]), std::slice::from_ref(&one));
    assert_eq!(after(&[&nonsense, &one], &[&one]), [nonsense, one]);
}

static AUTHORITIES: LazyLock<Vec<Authority>> =
    LazyLock::new(|| ["a", "b", "c", "d", "e"].into_iter().map(Authority::new).collect());

/// A certificate of one authority by another, and whether it can make its subject a root.
fn links() -> impl Strategy<Value = Vec<(usize, usize, bool)>> {
    let link = (0..AUTHORITIES.len(), 0..AUTHORITIES.len(), any::<bool>());
    let links = vec(
        link.prop_filter("a root's own certificate", |(subject, issuer, _)| subject != issuer),
        0..8,
    );
    links.boxed()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    /// Whatever the links, loops included: exactly the roots that they lead to are trusted.
    #[test]
    fn exactly_the_roots_that_a_chain_leads_to_are_trusted(links in links()) {
        let root = |at: usize| AUTHORITIES[at].root();
        let mut follows = [true, false, false, false, false];
        for _ in &AUTHORITIES[..] {
            for (subject, issuer, makes_root) in &links {
                follows[*subject] |= *makes_root && follows[*issuer];
            }
        }
        let certificates = links.iter().map(|(subject, issuer, makes_root)| {
            let change = |params: &mut CertificateParams| if !makes_root { path_length(0)(params) };
            certify(&AUTHORITIES[*subject], &AUTHORITIES[*issuer], change)
        });
        let bundle: Vec<_> = (0..AUTHORITIES.len()).map(root).chain(certificates).collect();
        let expected: Vec<_> = (0..AUTHORITIES.len()).filter(|at| follows[*at]).map(root).collect();
        let trusted = followed(&[root(0)], &bundle, NOW);
        let identities = |roots: &[CertificateDer<'static>]| {
            let mut identities: Vec<_> = roots.iter().map(|der| Ca::read(der).unwrap()).map(|ca| (ca.subject, ca.key)).collect();
            identities.sort();
            identities.dedup();
            identities
        };
        prop_assert_eq!(identities(&trusted), identities(&expected));
        // A second bundle without the first root drops it, if another follows.
        let trusted = followed(&trusted, &bundle[1..], NOW);
        let has_first = identities(&trusted).contains(&identities(&[root(0)])[0]);
        prop_assert_eq!(has_first, expected.len() == 1);
    }
}
