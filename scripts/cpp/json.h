// Reads JSON, and writes numbers as golden.json has them.
#pragma once

#include <cctype>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <map>
#include <stdexcept>
#include <string>
#include <vector>

struct Json {
    enum Kind { Null, Bool, Number, String, List, Object } kind = Null;
    double number = 0;   // of a Bool 0 or 1
    bool whole = false;  // whether a Number is written without a fraction and an exponent
    std::string text;
    std::vector<Json> list;
    std::map<std::string, Json> object;
    std::string written;  // of a value that holds no others, its characters in the source
    std::string key;      // of a part of an object, its name there, in quotes

    bool has(const std::string& name) const { return object.count(name) > 0; }

    const Json& operator[](const std::string& name) const {
        auto found = object.find(name);
        if (found == object.end()) throw std::runtime_error("there is no \"" + name + "\"");
        return found->second;
    }

    std::string text_or(const std::string& name, const std::string& other) const {
        return has(name) ? (*this)[name].text : other;
    }

    double number_or(const std::string& name, double other) const {
        return has(name) && (*this)[name].kind != Null ? (*this)[name].number : other;
    }
};

class JsonReader {
  public:
    static Json read(const std::string& source) {
        JsonReader reader(source);
        Json found = reader.value(0);
        reader.space();
        if (reader.at != source.size()) reader.fail("more than one value");
        return found;
    }

  private:
    static constexpr int kDeepest = 100;
    const std::string& source;
    size_t at = 0;

    explicit JsonReader(const std::string& source) : source(source) {}

    [[noreturn]] void fail(const std::string& why) const {
        throw std::runtime_error("no JSON at byte " + std::to_string(at) + ": " + why);
    }

    void space() {
        while (at < source.size() && std::isspace(static_cast<unsigned char>(source[at]))) at++;
    }

    bool take(char letter) {
        space();
        if (at >= source.size() || source[at] != letter) return false;
        at++;
        return true;
    }

    void need(char letter) {
        if (!take(letter)) fail(std::string("no ") + letter);
    }

    bool word(const std::string& text) {
        if (source.compare(at, text.size(), text) != 0) return false;
        at += text.size();
        return true;
    }

    Json value(int depth) {
        if (depth > kDeepest) fail("too deep");
        Json found;
        space();
        const size_t start = at;
        if (take('{')) {
            found.kind = Json::Object;
            if (take('}')) return found;
            do {
                space();
                const size_t begin = at;
                const std::string name = string();
                const std::string key = source.substr(begin, at - begin);
                if (found.object.count(name)) fail("a name twice");
                need(':');
                (found.object[name] = value(depth + 1)).key = key;
            } while (take(','));
            need('}');
        } else if (take('[')) {
            found.kind = Json::List;
            if (take(']')) return found;
            do found.list.push_back(value(depth + 1));
            while (take(','));
            need(']');
        } else if (at < source.size() && source[at] == '"') {
            found.kind = Json::String;
            found.text = string();
        } else if (word("true")) {
            found.kind = Json::Bool;
            found.number = 1;
        } else if (word("false")) {
            found.kind = Json::Bool;
        } else if (!word("null")) {
            const size_t from = at;
            while (at < source.size() && std::string("+-.eE0123456789").find(source[at]) != std::string::npos) at++;
            const std::string token = source.substr(from, at - from);
            char* end = nullptr;
            found.kind = Json::Number;
            found.number = std::strtod(token.c_str(), &end);
            found.whole = token.find_first_of(".eE") == std::string::npos;
            if (token.empty() || *end != '\0') fail("no value");
        }
        const bool holds_others = found.kind == Json::List || found.kind == Json::Object;
        if (!holds_others) found.written = source.substr(start, at - start);
        return found;
    }

    std::string string() {
        if (at >= source.size() || source[at] != '"') fail("no text");
        at++;
        std::string found;
        while (at < source.size() && source[at] != '"') {
            if (source[at] != '\\') {
                found += source[at++];
                continue;
            }
            char letter = at + 1 < source.size() ? source[at + 1] : '\0';
            at += 2;
            if (letter == 'u') {
                unsigned code = hex();
                if (code >= 0xD800 && code < 0xE000) {
                    const unsigned second = code < 0xDC00 && word("\\u") ? hex() : 0;
                    if (second < 0xDC00 || second >= 0xE000) fail("half of a surrogate pair");
                    code = 0x10000 + ((code - 0xD800) << 10) + (second - 0xDC00);
                }
                append(found, code);
            } else {
                const std::string from = "\"\\/bfnrt", to = "\"\\/\b\f\n\r\t";
                size_t place = from.find(letter);
                if (letter == '\0' || place == std::string::npos) fail("no escape");
                found += to[place];
            }
        }
        if (at >= source.size()) fail("a text without an end");
        at++;
        return found;
    }

    unsigned hex() {
        unsigned code = 0;
        for (int digit = 0; digit < 4; digit++, at++) {
            if (at >= source.size() || !std::isxdigit(static_cast<unsigned char>(source[at])))
                fail("no \\u and four digits");
            code = code * 16 + std::stoul(source.substr(at, 1), nullptr, 16);
        }
        return code;
    }

    static void append(std::string& into, unsigned code) {
        auto byte = [&](unsigned bits) { into += static_cast<char>(bits); };
        if (code < 0x80) return byte(code);
        if (code < 0x800) {
            byte(0xC0 | code >> 6);
        } else {
            if (code < 0x10000) {
                byte(0xE0 | code >> 12);
            } else {
                byte(0xF0 | code >> 18);
                byte(0x80 | (code >> 12 & 63));
            }
            byte(0x80 | (code >> 6 & 63));
        }
        byte(0x80 | (code & 63));
    }
};

/// A number, with as many digits as float32 needs.
inline std::string json_of(double number) {
    if (std::isnan(number)) return R"({"float": "nan"})";
    if (std::isinf(number)) return number > 0 ? R"({"float": "inf"})" : R"({"float": "-inf"})";
    char text[32];
    std::snprintf(text, sizeof text, "%.9g", number);
    return text;
}

/// A text, in quotes.
inline std::string json_of(const std::string& text) {
    std::string found = "\"";
    for (unsigned char byte : text) {
        char escaped[8];
        std::snprintf(escaped, sizeof escaped, "\\u%04x", byte);
        const bool plain = byte >= 0x20 && byte != '"' && byte != '\\';
        found += plain ? std::string(1, static_cast<char>(byte)) : escaped;
    }
    return found + "\"";
}

/// Numbers, row by row, as nested lists of this shape.
inline std::string json_of(const double*& numbers, const std::vector<size_t>& shape, size_t dim = 0) {
    if (dim == shape.size()) return json_of(*numbers++);
    std::string found = "[";
    for (size_t place = 0; place < shape[dim]; place++) found += (place ? ", " : "") + json_of(numbers, shape, dim + 1);
    return found + "]";
}
