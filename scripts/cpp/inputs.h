// Raw inputs, as JSON, to rows of tensors: the kinds of signature.json, and what each refuses.
//
// Not here: what needs tables or libraries. Tokens are given as ids, images as pixels, and a category whose value may
// only differ in how accents are written (NFC) is refused.
#pragma once

#include <algorithm>
#include <cmath>
#include <limits>
#include <stdexcept>
#include <string>
#include <vector>

#include "json.h"

/// What somebody gave is wrong, and no file is damaged.
struct Mistake : std::runtime_error {
    using std::runtime_error::runtime_error;
};

using Numbers = std::vector<double>;

inline bool is_float(const std::string& dtype) { return dtype.find("float") != std::string::npos; }

inline bool is_tagged(const Json& value, const std::string& tag) {
    return value.kind == Json::Object && value.object.size() == 1 && value.has(tag) && value[tag].kind == Json::String;
}

inline std::string from_base64(const std::string& text) {
    const std::string letters = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    const size_t size = text.find_last_not_of('=') + 1;
    std::string found;
    unsigned bits = 0;
    int count = 0;
    for (size_t at = 0; at < size; at++) {
        const size_t place = letters.find(text[at]);
        if (place == std::string::npos) throw Mistake("it is no base64");
        bits = bits << 6 | place;
        if ((count += 6) >= 8) found += static_cast<char>(bits >> (count -= 8) & 255);
    }
    if (text.size() % 4 != 0 || text.size() - size > 2) throw Mistake("it is no base64");
    return found;
}

/// The bytes of a text, or of {"base64": ...}.
inline std::string bytes_of(const Json& value) {
    if (value.kind == Json::String) return value.text;
    if (is_tagged(value, "base64")) return from_base64(value["base64"].text);
    throw Mistake("it has to be a text");
}

/// A number; {"float": "nan"} and, in lists, null are NaN.
inline double number_of(const Json& value, bool in_list) {
    if (value.kind == Json::Number || value.kind == Json::Bool) return value.number;
    if (value.kind == Json::Null && in_list) return std::nan("");
    if (is_tagged(value, "float")) {
        const std::string& text = value["float"].text;
        if (text == "nan") return std::nan("");
        if (text == "inf" || text == "-inf") return text == "inf" ? HUGE_VAL : -HUGE_VAL;
    }
    throw Mistake("it has to be numbers");
}

/// Appends the numbers of nested lists of this shape.
inline void collect(const Json& value, const std::vector<size_t>& shape, size_t dim, Numbers& into) {
    if (dim == shape.size()) return into.push_back(number_of(value, dim > 0));
    if (value.kind != Json::List) throw Mistake("it has to be nested lists of numbers, of the shape in signature.json");
    if (value.list.size() != shape[dim]) {
        throw Mistake("it has " + std::to_string(value.list.size()) + " parts, not " + std::to_string(shape[dim]));
    }
    for (const Json& each : value.list) collect(each, shape, dim + 1, into);
}

/// The numbers of an array of this shape, in a dtype. Throws Mistake for those that do not fit.
inline Numbers numbers_of(const Json& value, const std::vector<size_t>& shape, const std::string& dtype) {
    static const std::map<std::string, std::pair<double, double>> integers = {
        {"bool", {0, 1}},
        {"uint8", {0, 255}},
        {"int8", {-128, 127}},
        {"uint16", {0, 65535}},
        {"int16", {-32768, 32767}},
        {"uint32", {0, 4294967295.0}},
        {"int32", {-2147483648.0, 2147483647.0}},
    };
    if (is_tagged(value, "base64")) throw Mistake("it is bytes: give its numbers, of an image its pixels");
    Numbers found;
    collect(value, shape, 0, found);
    const auto limits = integers.find(dtype);
    for (double& each : found) {
        if (limits != integers.end()) {
            const auto [low, high] = limits->second;
            if (!(each >= low && each <= high && std::floor(each) == each))
                throw Mistake("its numbers do not fit " + dtype);
        } else if (std::isfinite(each)) {
            each = static_cast<float>(each);
            if (std::isinf(each)) throw Mistake("it has a number beyond " + dtype);
        }
    }
    return found;
}

inline std::vector<size_t> shape_of(const Json& sizes, size_t from = 0) {
    std::vector<size_t> shape;
    for (size_t dim = from; dim < sizes.list.size(); dim++)
        shape.push_back(static_cast<size_t>(sizes.list[dim].number));
    return shape;
}

inline Numbers row_of_text(const Json& input, const Json& value) {
    const bool text = input["kind"].text == "text";
    const bool ids = value.kind == Json::List;
    if (!text && !ids) throw Mistake("its tokenizer is not read here: give token ids");
    Numbers items;
    if (text) {
        for (unsigned char byte : bytes_of(value)) items.push_back(byte);
    } else {
        items = numbers_of(value, {value.list.size()}, "int32");
    }
    const size_t length = static_cast<size_t>(input[text ? "bytes" : "length"].number);
    if (items.size() < input.number_or("least", 0)) throw Mistake(items.empty() ? "it is empty" : "it is too short");
    if (items.size() > length && input.text_or("keep", "first") == "last") {
        items.erase(items.begin(), items.end() - static_cast<std::ptrdiff_t>(length));
    }
    items.resize(length, text ? 0 : input.number_or("pad", 0));
    return items;
}

inline Numbers row_of_category(const Json& input, const Json& value) {
    const bool number = value.kind == Json::Bool || (value.kind == Json::Number && value.whole);
    if (!number && value.kind != Json::String && !is_tagged(value, "base64")) {
        throw Mistake("it is neither a text nor an integer");
    }
    const std::string text = number ? "" : bytes_of(value);
    const auto& values = input["values"].list;
    for (size_t place = values.size(); place-- > 0;) {  // of equal values the last one counts
        const Json& each = values[place];
        const bool same = number ? each.kind == Json::Number && each.number == value.number
                                 : each.kind == Json::String && each.text == text;
        if (same) return {input.number_or("first", 0) + static_cast<double>(place)};
    }
    // From U+0300 on, whose first byte is 0xCC, characters may have another form that is one of the values.
    if (std::any_of(text.begin(), text.end(), [](unsigned char byte) { return byte >= 0xCC; })) {
        throw Mistake("it is none of its values, unless its characters are written in another way: give one of those");
    }
    const bool kind_known = std::any_of(values.begin(), values.end(),
                                        [&](const Json& each) { return (each.kind == Json::Number) == number; });
    const bool closed = !input.has("unknown") || input["unknown"].kind == Json::Null;
    if (closed || (!values.empty() && !kind_known)) throw Mistake("it is none of its values");
    return {input["unknown"].number};
}

inline Numbers row_of_number(const Json& input, const Json& value) {
    const bool missing = input.has("missing") && input["missing"].number != 0;
    const double given = value.kind == Json::Null ? std::nan("") : number_of(value, false);
    const double found = static_cast<float>(given);
    if (std::isinf(found)) throw Mistake("it has to be finite, and within float32");
    if (std::isnan(found) && !missing) throw Mistake("it is missing");
    const bool integer = input.has("integer") && input["integer"].number != 0;
    if (integer && !std::isnan(found) && (found != given || std::floor(found) != found || std::abs(found) > 1 << 24)) {
        throw Mistake("it has to be an integer within ±16,777,216");
    }
    return {found};
}

inline Numbers row_of_array(const Json& input, const Json& value) {
    const bool sound = input["kind"].text == "audio";
    const std::string dtype = sound ? "float32" : input["dtype"].text;
    const bool missing = input.has("missing") && input["missing"].number != 0;
    const auto shape =
        sound ? std::vector<size_t>{static_cast<size_t>(input["samples"].number)} : shape_of(input["shape"]);
    const Numbers found = numbers_of(value, shape, dtype);
    double low = -std::numeric_limits<double>::infinity(), high = -low;
    if (input.has("range") && !input["range"].list.empty()) {
        low = input["range"].list[0].number, high = input["range"].list[1].number;
        if (is_float(dtype)) low = static_cast<float>(low), high = static_cast<float>(high);
    }
    for (double each : found) {
        if (!std::isfinite(each) && !(missing && std::isnan(each))) throw Mistake("it has to be finite numbers");
        if (each < low || each > high) throw Mistake("it is on the scale of " + json_of(low) + " to " + json_of(high));
    }
    return found;
}

/// The numbers of one row of an input's tensor. Throws Mistake for a value that it cannot be.
inline Numbers row_of(const Json& input, const Json& value) {
    const std::string& kind = input["kind"].text;
    if (kind == "text" || kind == "tokens") return row_of_text(input, value);
    if (kind == "category") return row_of_category(input, value);
    if (kind == "number") return row_of_number(input, value);
    if (kind == "array" || kind == "image" || kind == "audio") return row_of_array(input, value);
    throw std::runtime_error("signature.json: inputs of the kind " + kind + " are not known here");
}
