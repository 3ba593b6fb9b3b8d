// A reader of JSON as jaxtrain writes it: enough for signature.json and golden.json.
#pragma once

#include <cctype>
#include <map>
#include <stdexcept>
#include <string>
#include <vector>

struct Json {
    enum Kind { Null, Bool, Number, String, List, Object } kind = Null;
    double number = 0;  // of a Bool 0 or 1
    std::string text;
    std::vector<Json> list;
    std::map<std::string, Json> object;

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
        if (take('{')) {
            found.kind = Json::Object;
            if (take('}')) return found;
            do {
                space();
                std::string name = string();
                need(':');
                found.object[name] = value(depth + 1);
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
            found.kind = Json::Number;
            size_t used = 0;
            try {
                found.number = std::stod(source.substr(at, 64), &used);
            } catch (const std::exception&) {
                fail("no value");
            }
            at += used;
        }
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
                if (code >= 0xD800 && code < 0xDC00 && word("\\u")) code = 0x10000 + ((code - 0xD800) << 10) + hex() - 0xDC00;
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
        size_t used = 0;
        unsigned code = 0;
        try {
            code = std::stoul(source.substr(at, 4), &used, 16);
        } catch (const std::exception&) {
        }
        if (used != 4) fail("no \\u and four digits");
        at += 4;
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
