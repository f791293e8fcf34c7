// What Rust cannot call on macOS: CryptoKit's keys in the Secure Enclave, managed settings, and the unified log.
//
// Every function may be called from any thread and keeps nothing between calls. A key is loaded, used and released
// within one call and one autorelease pool. The enclave has few channels, and a key that stays in a pool would exhaust
// them. A function that can fail returns 0 on success and 1 on failure. On failure it writes the error and its causes
// to the report, one per line: domain, code and description, separated by tabs. The caller owns all buffers. A result
// that does not fit is an error. The other side of this contract is agent/src/shim/mod.rs; change both together.

import CryptoKit
import Foundation
import os
import Security

// Counts the loaded keys. `selftest` prints the numbers.
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

// accessibility: 0 from boot, 1 from the first login after boot. The public key is a point of 65 bytes.
@_cdecl("assay_se_create")
public func assaySeCreate(
    _ accessibility: Int32,
    _ blob: UnsafeMutablePointer<UInt8>, _ blobCapacity: Int, _ blobLength: UnsafeMutablePointer<Int>,
    _ publicKey: UnsafeMutablePointer<UInt8>,
    _ report: UnsafeMutablePointer<UInt8>, _ reportCapacity: Int
) -> Int32 {
    reporting(to: report, reportCapacity) {
        // Apple has deprecated the former but still honours it. No other value makes a key usable before login.
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

// Hashes the message with SHA-256 and signs the digest. Also returns the public half of the key.
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

// Returns the number of loaded keys, and writes the maximum since the process began to `most`.
@_cdecl("assay_se_handles")
public func assaySeHandles(_ most: UnsafeMutablePointer<UInt64>) -> UInt64 {
    let count = LoadedKey.count()
    most.pointee = count.most
    return count.loaded
}

// The settings of this domain that a configuration profile forces, as a JSON object. `keys` has one key per line.
@_cdecl("assay_managed_settings")
public func assayManagedSettings(
    _ domain: UnsafePointer<UInt8>, _ domainLength: Int,
    _ keys: UnsafePointer<UInt8>, _ keysLength: Int,
    _ json: UnsafeMutablePointer<UInt8>, _ jsonCapacity: Int, _ jsonLength: UnsafeMutablePointer<Int>,
    _ report: UnsafeMutablePointer<UInt8>, _ reportCapacity: Int
) -> Int32 {
    reporting(to: report, reportCapacity) {
        let application = text(domain, domainLength) as CFString
        // Without this, a long-lived process keeps the values that it read first.
        CFPreferencesAppSynchronize(application)
        var forced: [String: Any] = [:]
        for key in text(keys, keysLength).split(separator: "\n").map(String.init) {
            guard CFPreferencesAppValueIsForced(key as CFString, application),
                let value = CFPreferencesCopyAppValue(key as CFString, application)
            else { continue }
            // JSON cannot represent a date or data. The empty object makes the agent reject the setting.
            let isFit = JSONSerialization.isValidJSONObject([value])
            forced[key] = isFit ? value as Any : [String: String]() as Any
        }
        jsonLength.pointee = try copy(JSONSerialization.data(withJSONObject: forced), to: json, jsonCapacity)
    }
}

private let unifiedLog = OSLog(subsystem: "dev.assay.agent", category: "agent")

// level: 0 error, 1 default, others debug. The agent logs no secrets, so the text is public.
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
    // The conversion to NSError loses the associated error of a Swift error.
    var further = " (" + String(describing: thrown) + ")"
    // CryptoKit nests less than four errors. The limit also ends a circular chain.
    for _ in 0..<4 {
        guard let error = next else { break }
        // The error of the enclave's own driver. CryptoTokenKit reports most of them as corrupted data.
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
