// The manifest of a bundle: the hash that it holds of itself, and the names and hashes of the files.
#pragma once

#include <sstream>
#include <stdexcept>
#include <string>

#include "json.h"
#include "sha256.h"

/// The JSON of a value as Python's json.dumps(…, sort_keys=True) writes it. Numbers and texts stay as they are written,
/// since C++ would write some of them otherwise; names in UTF-8 have the order of their code points, as in Python.
inline std::string sorted_json(const Json& value) {
    if (value.kind != Json::List && value.kind != Json::Object) return value.written;
    std::string parts;
    const auto separator = [&] { return parts.empty() ? "" : ", "; };
    for (const Json& each : value.list) parts += separator() + sorted_json(each);
    for (const auto& each : value.object) parts += separator() + each.second.key + ": " + sorted_json(each.second);
    return value.kind == Json::List ? "[" + parts + "]" : "{" + parts + "}";
}

/// Whether a path is that of a file inside of a folder.
inline bool is_inside(const std::string& path) {
    std::stringstream parts(path + "/");
    for (std::string part; std::getline(parts, part, '/');) {
        if (part.empty() || part == "." || part == "..") return false;
    }
    return path.find('\\') == std::string::npos;
}

/// Throws runtime_error for a manifest that is not what was written.
inline void check_manifest(Json manifest) {
    const std::string seal = manifest.text_or("sha256", "");
    manifest.object.erase("sha256");
    if (sha256(sorted_json(manifest)) != seal)
        throw std::runtime_error("it is not what was written: its checksum differs");
    if (manifest["files"].kind != Json::Object) throw std::runtime_error("it names no files");
    for (const auto& [name, entry] : manifest["files"].object) {
        if (!is_inside(name) || name == "manifest.json")
            throw std::runtime_error(json_of(name) + " is no path of a file inside of the bundle");
        const bool complete = entry.has("bytes") && entry["bytes"].kind == Json::Number && entry.has("sha256");
        if (!complete) throw std::runtime_error("what it says of " + json_of(name) + " is no size and sha256");
    }
}
