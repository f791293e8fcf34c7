// What the agent needs of macOS and Rust cannot call: CryptoKit's Secure Enclave keys, managed settings, unified logging.
//
// Every function is called from any thread and keeps nothing between calls. A key is loaded, used and released within
// one call and one autorelease pool: the channels to the enclave are few, and a key that lingers in a pool exhausts them.
// A function that can fail answers 0 when it went well and 1 otherwise, and then writes the error and what caused it,
// one a line: domain, code and description, with tabs between. Buffers belong to the caller; a result that does not
// fit is an error. The other side of this is agent/src/shim/mod.rs, and both have to change together.

import CryptoKit
import Foundation
import os
import Security

// Every load of a key is paired with its release, and counted. `selftest` shows the numbers.
private final class LoadedKey {
    private static let lock = NSLock()
    private static var loaded: UInt64 = 0
    private static var most: UInt64 = 0

    let key: SecureEnclave.P256.Signing.PrivateKey

    init(_ key: SecureEnclave.P256.Signing.PrivateKey) {
        self.key = key
        LoadedKey.lock.lock()
        LoadedKey.loaded += 1
        LoadedKey.most = max(LoadedKey.most, LoadedKey.loaded)
        LoadedKey.lock.unlock()
    }

    convenience init(blob: UnsafePointer<UInt8>, length: Int) throws {
        let representation = Data(bytes: blob, count: length)
        self.init(try SecureEnclave.P256.Signing.PrivateKey(dataRepresentation: representation))
    }

    deinit {
        LoadedKey.lock.lock()
        LoadedKey.loaded -= 1
        LoadedKey.lock.unlock()
    }

    static func count() -> (loaded: UInt64, most: UInt64) {
        lock.lock()
        defer { lock.unlock() }
        return (loaded, most)
    }
}

private struct DoesNotFit: Error, CustomNSError {
    static var errorDomain: String { "Assay" }
    var errorCode: Int { 1 }
    var errorUserInfo: [String: Any] { [NSLocalizedDescriptionKey: "the result is longer than its buffer"] }
}

@_cdecl("assay_se_available")
public func assaySeAvailable() -> Int32 {
    SecureEnclave.isAvailable ? 1 : 0
}

// accessibility: 0 from boot on, 1 from the first login after a boot on. The public key is a point of 65 bytes.
@_cdecl("assay_se_create")
public func assaySeCreate(
    _ accessibility: Int32,
    _ blob: UnsafeMutablePointer<UInt8>, _ blobCapacity: Int, _ blobLength: UnsafeMutablePointer<Int>,
    _ publicKey: UnsafeMutablePointer<UInt8>,
    _ report: UnsafeMutablePointer<UInt8>, _ reportCapacity: Int
) -> Int32 {
    reporting(to: report, reportCapacity) {
        // Apple deprecated the former and still honours it; there is no other way to use a key before anybody logs in.
        let protection = accessibility == 0
            ? kSecAttrAccessibleAlwaysThisDeviceOnly
            : kSecAttrAccessibleAfterFirstUnlockThisDeviceOnly
        var refusal: Unmanaged<CFError>?
        guard let control = SecAccessControlCreateWithFlags(nil, protection, .privateKeyUsage, &refusal) else {
            throw refusal!.takeRetainedValue() as Error
        }
        let loaded = LoadedKey(try SecureEnclave.P256.Signing.PrivateKey(accessControl: control))
        blobLength.pointee = try copy(loaded.key.dataRepresentation, to: blob, blobCapacity)
        _ = try copy(loaded.key.publicKey.x963Representation, to: publicKey, 65)
    }
}

@_cdecl("assay_se_public_key")
public func assaySePublicKey(
    _ blob: UnsafePointer<UInt8>, _ blobLength: Int,
    _ publicKey: UnsafeMutablePointer<UInt8>,
    _ report: UnsafeMutablePointer<UInt8>, _ reportCapacity: Int
) -> Int32 {
    reporting(to: report, reportCapacity) {
        let loaded = try LoadedKey(blob: blob, length: blobLength)
        _ = try copy(loaded.key.publicKey.x963Representation, to: publicKey, 65)
    }
}

// Hashes the message with SHA-256 and signs that. Also tells the public half of the key that signed.
@_cdecl("assay_se_sign")
public func assaySeSign(
    _ blob: UnsafePointer<UInt8>, _ blobLength: Int,
    _ message: UnsafePointer<UInt8>, _ messageLength: Int,
    _ publicKey: UnsafeMutablePointer<UInt8>,
    _ der: UnsafeMutablePointer<UInt8>, _ derCapacity: Int, _ derLength: UnsafeMutablePointer<Int>,
    _ report: UnsafeMutablePointer<UInt8>, _ reportCapacity: Int
) -> Int32 {
    reporting(to: report, reportCapacity) {
        let loaded = try LoadedKey(blob: blob, length: blobLength)
        let signature = try loaded.key.signature(for: Data(bytes: message, count: messageLength))
        _ = try copy(loaded.key.publicKey.x963Representation, to: publicKey, 65)
        derLength.pointee = try copy(signature.derRepresentation, to: der, derCapacity)
    }
}

// How many keys are loaded now, and into `most` how many were at a time since the process began.
@_cdecl("assay_se_handles")
public func assaySeHandles(_ most: UnsafeMutablePointer<UInt64>) -> UInt64 {
    let count = LoadedKey.count()
    most.pointee = count.most
    return count.loaded
}

// The settings of this domain that a configuration profile forces, as a JSON object; `keys` are on a line each.
@_cdecl("assay_managed_settings")
public func assayManagedSettings(
    _ domain: UnsafePointer<UInt8>, _ domainLength: Int,
    _ keys: UnsafePointer<UInt8>, _ keysLength: Int,
    _ json: UnsafeMutablePointer<UInt8>, _ jsonCapacity: Int, _ jsonLength: UnsafeMutablePointer<Int>,
    _ report: UnsafeMutablePointer<UInt8>, _ reportCapacity: Int
) -> Int32 {
    reporting(to: report, reportCapacity) {
        let application = text(domain, domainLength) as CFString
        // Else a long-lived process goes on with what it read first.
        CFPreferencesAppSynchronize(application)
        var forced: [String: Any] = [:]
        for key in text(keys, keysLength).split(separator: "\n").map(String.init) {
            guard CFPreferencesAppValueIsForced(key as CFString, application),
                let value = CFPreferencesCopyAppValue(key as CFString, application)
            else { continue }
            // A date or data is in no setting's form, and is refused as an object where text is expected.
            let isFit = JSONSerialization.isValidJSONObject([value])
            forced[key] = isFit ? value as Any : [String: String]() as Any
        }
        jsonLength.pointee = try copy(JSONSerialization.data(withJSONObject: forced), to: json, jsonCapacity)
    }
}

private let unifiedLog = OSLog(subsystem: "dev.assay.agent", category: "agent")

// level: 0 error, 1 default, others debug. The agent logs no secrets, so that the text may be shown.
@_cdecl("assay_log")
public func assayLog(_ level: Int32, _ message: UnsafePointer<UInt8>, _ messageLength: Int) {
    autoreleasepool {
        let type: OSLogType
        switch level {
        case 0: type = .error
        case 1: type = .default
        default: type = .debug
        }
        os_log("%{public}@", log: unifiedLog, type: type, text(message, messageLength) as NSString)
    }
}

private func reporting(to report: UnsafeMutablePointer<UInt8>, _ capacity: Int, _ work: () throws -> Void) -> Int32 {
    autoreleasepool { () -> Int32 in
        do {
            try work()
            return 0
        } catch {
            write(error, to: report, capacity)
            return 1
        }
    }
}

private func write(_ thrown: Error, to report: UnsafeMutablePointer<UInt8>, _ capacity: Int) {
    var lines = ""
    var next: NSError? = thrown as NSError
    // A Swift error that carries another one's code loses it as an NSError.
    var further = " (" + String(describing: thrown) + ")"
    // Four deep is further than CryptoKit nests, and ends a chain that leads to itself.
    for _ in 0..<4 {
        guard let error = next else { break }
        // What the enclave's own driver said; CryptoTokenKit calls most of it corrupted data.
        if let cause = error.userInfo["AKSError"] as? NSNumber {
            further += " (AKSError \(cause))"
        }
        let words = (error.localizedDescription + further)
            .components(separatedBy: .controlCharacters).joined(separator: " ")
        further = ""
        lines += "\(error.domain)\t\(error.code)\t\(words)\n"
        next = error.userInfo[NSUnderlyingErrorKey] as? NSError
    }
    guard capacity > 0 else { return }
    let bytes = Array(lines.utf8.prefix(capacity - 1))
    report.update(from: bytes, count: bytes.count)
    report[bytes.count] = 0
}

private func copy(_ data: Data, to buffer: UnsafeMutablePointer<UInt8>, _ capacity: Int) throws -> Int {
    guard data.count <= capacity else { throw DoesNotFit() }
    data.copyBytes(to: buffer, count: data.count)
    return data.count
}

private func text(_ bytes: UnsafePointer<UInt8>, _ length: Int) -> String {
    String(decoding: UnsafeBufferPointer(start: bytes, count: length), as: UTF8.self)
}
