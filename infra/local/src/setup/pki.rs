//! Keys and certificates of the twin's control plane, made once. They protect a cluster that listens on 127.0.0.1 only.
//! Only the owner can read their folder.

use std::{fs, os::unix::fs::PermissionsExt};

use anyhow::{Context, Result, ensure};
use rcgen::{
    BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair, KeyUsagePurpose,
    PKCS_RSA_SHA256, RsaKeySize,
};
use rustls::{
    ClientConfig, RootCertStore, ServerConfig,
    pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject},
};

use crate::{paths::Paths, private_file::write_private};

/// The certificate authority of the API server and its clients, in PEM.
pub(crate) const CA: &str = "ca.crt";
/// The certificate authority of the operator's webhook, in PEM.
pub(crate) const WEBHOOK_CA: &str = "webhook-ca.crt";
/// Another certificate authority, which no client trusts, in PEM. A fault uses it.
pub(crate) const OTHER_CA: &str = "other-ca.crt";
/// A file that is written last, so that it marks the folder as complete.
const COMPLETE: &str = "complete";

/// Makes all keys and certificates unless they are there.
pub(crate) fn make(paths: &Paths) -> Result<()> {
    if paths.pki(COMPLETE).exists() {
        return Ok(());
    }
    let folder = paths.state().join("pki");
    fs::create_dir_all(&folder)?;
    fs::set_permissions(&folder, fs::Permissions::from_mode(0o700))?;
    let write =
        |name: &str, text: String| fs::write(paths.pki(name), text).with_context(|| format!("cannot write {name}"));

    let ca_key = KeyPair::generate()?;
    let ca_params = authority("twin-ca", &[])?;
    write(CA, ca_params.self_signed(&ca_key)?.pem())?;
    let ca = Issuer::new(ca_params, ca_key);

    let server_key = KeyPair::generate()?;
    write("server.crt", server()?.signed_by(&server_key, &ca)?.pem())?;
    write("server.key", server_key.serialize_pem())?;

    let admin_key = KeyPair::generate()?;
    let mut admin = CertificateParams::default();
    admin.distinguished_name.push(DnType::CommonName, "admin");
    admin.distinguished_name.push(DnType::OrganizationName, "system:masters");
    admin.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
    write("admin.crt", admin.signed_by(&admin_key, &ca)?.pem())?;
    write("admin.key", admin_key.serialize_pem())?;

    let service_accounts = KeyPair::generate_rsa_for(&PKCS_RSA_SHA256, RsaKeySize::_2048)?;
    write("service-accounts.key", service_accounts.serialize_pem())?;
    write("service-accounts.pub", service_accounts.public_key_pem())?;

    make_webhook_pair(&write)?;
    write(COMPLETE, String::new())
}

/// Makes a certificate for the API server's address that another authority has signed.
pub(crate) fn make_other(paths: &Paths) -> Result<()> {
    let ca_key = KeyPair::generate()?;
    let ca_params = authority("other-ca", &[])?;
    write_private(&paths.pki(OTHER_CA), &ca_params.self_signed(&ca_key)?.pem())?;
    let server_key = KeyPair::generate()?;
    let certificate = server()?.signed_by(&server_key, &Issuer::new(ca_params, ca_key))?;
    write_private(&paths.pki("other.crt"), &certificate.pem())?;
    write_private(&paths.pki("other.key"), &server_key.serialize_pem())
}

/// The TLS of a server at the API server's address. `name` says which certificate it has: `server` or `other`.
pub(crate) fn server_config(paths: &Paths, name: &str) -> Result<ServerConfig> {
    let certificate = CertificateDer::from_pem_file(paths.pki(&format!("{name}.crt")))?;
    let key = PrivateKeyDer::from_pem_file(paths.pki(&format!("{name}.key")))?;
    Ok(ServerConfig::builder().with_no_client_auth().with_single_cert(vec![certificate], key)?)
}

/// The TLS of a client that trusts only the twin's authority.
pub(crate) fn client_config(paths: &Paths) -> Result<ClientConfig> {
    let mut roots = RootCertStore::empty();
    roots.add(CertificateDer::from_pem_file(paths.pki(CA))?)?;
    Ok(ClientConfig::builder().with_root_certificates(roots).with_no_client_auth())
}

fn server() -> Result<CertificateParams> {
    let mut server = CertificateParams::new(["127.0.0.1", "localhost", "10.0.0.1"].map(String::from))?;
    server.distinguished_name.push(DnType::CommonName, "kube-apiserver");
    server.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
    Ok(server)
}

/// Makes the certificate of the operator's webhook. The operator replaces a certificate that does not have the form of
/// its own: RSA keys in PKCS#1, training-operator-ca among the authority's subject alternative names, and the service's
/// name among the server's.
fn make_webhook_pair(write: &impl Fn(&str, String) -> Result<()>) -> Result<()> {
    let ca_key = KeyPair::generate_rsa_for(&PKCS_RSA_SHA256, RsaKeySize::_2048)?;
    let mut ca_params = authority("training-operator-ca", &["training-operator-ca"])?;
    ca_params.distinguished_name.push(DnType::OrganizationName, "training-operator");
    ca_params.key_usages.extend([KeyUsagePurpose::DigitalSignature, KeyUsagePurpose::KeyEncipherment]);
    write(WEBHOOK_CA, ca_params.self_signed(&ca_key)?.pem())?;
    write("webhook-ca.key", pkcs1(&ca_key)?)?;
    let ca = Issuer::new(ca_params, ca_key);

    let key = KeyPair::generate_rsa_for(&PKCS_RSA_SHA256, RsaKeySize::_2048)?;
    let mut server = CertificateParams::new(["training-operator.kubeflow.svc", "127.0.0.1"].map(String::from))?;
    server.distinguished_name.push(DnType::CommonName, "training-operator.kubeflow.svc");
    server.key_usages = vec![KeyUsagePurpose::DigitalSignature, KeyUsagePurpose::KeyEncipherment];
    server.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
    write("webhook.crt", server.signed_by(&key, &ca)?.pem())?;
    write("webhook.key", pkcs1(&key)?)
}

fn authority(name: &str, alternative_names: &[&str]) -> Result<CertificateParams> {
    let names: Vec<String> = alternative_names.iter().map(ToString::to_string).collect();
    let mut params = CertificateParams::new(names)?;
    params.distinguished_name = rcgen::DistinguishedName::new();
    params.distinguished_name.push(DnType::CommonName, name);
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    Ok(params)
}

/// The PKCS#1 form of an RSA-2048 key: the octets inside its PKCS#8 form, which begin after a header of 26 bytes.
fn pkcs1(key: &KeyPair) -> Result<String> {
    const HEADER_BYTES: usize = 26;
    let der = key.serialized_der();
    let inner = der.get(HEADER_BYTES..).context("the RSA key is too short")?;
    ensure!(
        der.get(22..24) == Some(&[0x04, 0x82]) && inner.starts_with(&[0x30, 0x82]),
        "the RSA key is not laid out as PKCS#8 of 2048 bits"
    );
    Ok(pem::encode(&pem::Pem::new("RSA PRIVATE KEY", inner)))
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use rustls::pki_types::{PrivatePkcs1KeyDer, PrivatePkcs8KeyDer};

    use super::*;

    fn paths_with_keys(folder: &Path) -> Paths {
        let paths = Paths::at(folder);
        make(&paths).unwrap();
        paths
    }

    /// Fails unless the key can be read and belongs to the certificate.
    fn serve_with(paths: &Paths, certificate: &str, key: PrivateKeyDer<'static>) {
        let certificate = pem::parse(fs::read(paths.pki(certificate)).unwrap()).unwrap();
        let provider = std::sync::Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        ServerConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_no_client_auth()
            .with_single_cert(vec![CertificateDer::from(certificate.into_contents())], key)
            .unwrap();
    }

    #[test]
    fn the_webhook_key_is_pkcs1_and_fits_its_certificate() {
        let folder = tempfile::tempdir().unwrap();
        let paths = paths_with_keys(folder.path());
        let key = pem::parse(fs::read(paths.pki("webhook.key")).unwrap()).unwrap();
        assert_eq!(key.tag(), "RSA PRIVATE KEY");
        serve_with(&paths, "webhook.crt", PrivatePkcs1KeyDer::from(key.into_contents()).into());
    }

    #[test]
    fn keys_are_made_once_and_for_their_owner_only() {
        let folder = tempfile::tempdir().unwrap();
        let paths = paths_with_keys(folder.path());
        let before = fs::read(paths.pki("server.key")).unwrap();
        make(&paths).unwrap();
        assert_eq!(fs::read(paths.pki("server.key")).unwrap(), before);
        let mode = fs::metadata(paths.state().join("pki")).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o700);
        let key = pem::parse(before).unwrap();
        serve_with(&paths, "server.crt", PrivatePkcs8KeyDer::from(key.into_contents()).into());
    }
}
