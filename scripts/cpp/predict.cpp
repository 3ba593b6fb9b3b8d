// Runs a bundle of jaxtrain from C++ with OpenVINO: raw inputs to tensors to outputs, without Python.
//
//     predict FOLDER --golden          compares the outputs of all golden examples with the expected ones
//     predict FOLDER --time            milliseconds of an inference, of the first golden example
//     predict FOLDER TEXT...           the outputs for texts, where a text is the one input
//
// Texts are bytes, so no tokenizer library is needed. Not here: hashes of files, tokens of BPE (give ids), accents that
// are written apart in categories, encoded images.

#include <algorithm>
#include <chrono>
#include <cmath>
#include <cstdio>
#include <cstring>
#include <fstream>
#include <iostream>
#include <limits>
#include <openvino/openvino.hpp>
#include <sstream>

#include "json.h"

namespace {

constexpr double kTolerance = 1e-4;
constexpr int kTimed = 200;

std::string content(const std::string& path) {
    std::ifstream file(path, std::ios::binary);
    if (!file) throw std::runtime_error(path + " cannot be read");
    std::stringstream found;
    found << file.rdbuf();
    return found.str();
}

std::string from_base64(const std::string& text) {
    const std::string letters = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    std::string found;
    unsigned bits = 0;
    int count = 0;
    for (char letter : text) {
        size_t place = letters.find(letter);
        if (place == std::string::npos) continue;
        bits = bits << 6 | place;
        if ((count += 6) >= 8) found += static_cast<char>(bits >> (count -= 8) & 255);
    }
    return found;
}

/// The bytes of a text of golden.json, or of its {"base64": ...}.
std::string bytes_of(const Json& value) {
    if (value.kind == Json::String) return value.text;
    if (value.kind == Json::Object && value.has("base64")) return from_base64(value["base64"].text);
    throw std::runtime_error("it is no text");
}

/// The numbers of a value of golden.json, of nested lists row by row; null and {"float": "nan"} are NaN.
void collect(const Json& value, std::vector<double>& into) {
    if (value.kind == Json::List) {
        for (const Json& each : value.list) collect(each, into);
    } else if (value.kind == Json::Null) {
        into.push_back(std::numeric_limits<double>::quiet_NaN());
    } else if (value.kind == Json::Object) {
        into.push_back(std::stod(value["float"].text));
    } else if (value.kind == Json::Number || value.kind == Json::Bool) {
        into.push_back(value.number);
    } else {
        throw std::runtime_error("it is no number");
    }
}

std::vector<double> numbers(const Json& value) {
    std::vector<double> found;
    collect(value, found);
    return found;
}

/// The numbers of one row of an input's tensor.
std::vector<double> row(const Json& input, const Json& value) {
    const std::string kind = input["kind"].text;
    if (kind == "text" || kind == "tokens") {
        const bool text = kind == "text";
        const size_t length = static_cast<size_t>(input[text ? "bytes" : "length"].number);
        std::vector<double> items;
        if (text) {
            for (unsigned char byte : bytes_of(value)) items.push_back(byte);
        } else {
            items = numbers(value);
        }
        if (items.size() < input.number_or("least", 0)) throw std::runtime_error("it is too short");
        if (items.size() > length) {
            const bool first = input.text_or("keep", "first") == "first";
            items.erase(first ? items.begin() + length : items.begin(), first ? items.end() : items.end() - length);
        }
        items.resize(length, text ? 0 : input.number_or("pad", 0));
        return items;
    }
    if (kind == "category") {
        const auto& values = input["values"].list;
        for (size_t place = values.size(); place-- > 0;) {
            const Json& each = values[place];
            if (each.kind == value.kind && each.number == value.number && each.text == value.text) {
                return {input.number_or("first", 0) + static_cast<double>(place)};
            }
        }
        if (!input.has("unknown") || input["unknown"].kind == Json::Null) throw std::runtime_error("it is none of its values");
        return {input["unknown"].number};
    }
    return numbers(value);
}

template <typename T>
void fill(ov::Tensor& tensor, size_t start, const std::vector<double>& values) {
    T* data = tensor.data<T>() + start;
    for (size_t i = 0; i < values.size(); i++) data[i] = static_cast<T>(values[i]);
}

struct Kind {
    ov::element::Type type;
    void (*fill)(ov::Tensor&, size_t, const std::vector<double>&);
};

const std::map<std::string, Kind> kKinds = {
    {"bool", {ov::element::boolean, fill<char>}},       {"uint8", {ov::element::u8, fill<uint8_t>}},
    {"int8", {ov::element::i8, fill<int8_t>}},          {"uint16", {ov::element::u16, fill<uint16_t>}},
    {"int16", {ov::element::i16, fill<int16_t>}},       {"uint32", {ov::element::u32, fill<uint32_t>}},
    {"int32", {ov::element::i32, fill<int32_t>}},       {"float16", {ov::element::f16, fill<ov::float16>}},
    {"float32", {ov::element::f32, fill<float>}},
};

class Bundle {
  public:
    explicit Bundle(const std::string& folder)
        : signature(JsonReader::read(content(folder + "/signature.json"))), folder(folder) {
        if (signature["format"].number != 1) throw std::runtime_error("it is of a newer format");
        ov::Core core;
        // Without this, a CPU that has bf16 computes in it, silently: errors of 5e-3.
        auto compiled = core.compile_model(folder + "/model.onnx", "CPU", ov::hint::inference_precision(ov::element::f32),
                                           ov::hint::performance_mode(ov::hint::PerformanceMode::LATENCY));
        request = compiled.create_infer_request();
    }

    const Json signature;

    /// The outputs by name, rows one after the other.
    std::map<std::string, std::vector<double>> predict(const std::vector<Json>& rows) {
        for (const Json& input : signature["inputs"].list) {
            const Json& spec = tensor_spec(input["tensor"].text);
            const Kind& kind = kKinds.at(spec["dtype"].text);
            ov::Shape shape = {rows.size()};
            for (size_t dim = 1; dim < spec["shape"].list.size(); dim++) {
                shape.push_back(static_cast<size_t>(spec["shape"].list[dim].number));
            }
            ov::Tensor tensor(kind.type, shape);
            const size_t size = tensor.get_size() / rows.size();
            for (size_t number = 0; number < rows.size(); number++) {
                try {
                    const std::string& name = input["name"].text;
                    const auto values = row(input, rows[number].has(name) ? rows[number][name] : Json());
                    if (values.size() != size) throw std::runtime_error("it has " + std::to_string(values.size()) + " numbers");
                    kind.fill(tensor, number * size, values);
                } catch (const std::exception& error) {
                    throw std::runtime_error("row " + std::to_string(number) + ": input " + input["name"].text + ": " + error.what());
                }
            }
            request.set_tensor(spec["name"].text, tensor);
        }
        request.infer();
        std::map<std::string, std::vector<double>> found;
        for (const Json& output : signature["outputs"].list) {
            const ov::Tensor tensor = request.get_tensor(name_in_graph(output["name"].text));
            auto& values = found[output["name"].text];
            for (size_t i = 0; i < tensor.get_size(); i++) {
                if (tensor.get_element_type() == ov::element::f32) values.push_back(tensor.data<const float>()[i]);
                else if (tensor.get_element_type() == ov::element::i32) values.push_back(tensor.data<const int32_t>()[i]);
                else throw std::runtime_error("an output is neither f32 nor i32");
            }
        }
        return found;
    }

    std::vector<Json> golden() const {
        const Json file = JsonReader::read(content(folder + "/golden.json"));
        return file["examples"].list;
    }

  private:
    const std::string folder;
    ov::InferRequest request;

    /// The name that an output has in the graph: another one where an input has the same.
    std::string name_in_graph(const std::string& output) const {
        for (const Json& each : signature["tensors"].list) {
            if (each["name"].text == output) return "output/" + output;
        }
        return output;
    }

    const Json& tensor_spec(const std::string& name) const {
        for (const Json& each : signature["tensors"].list) {
            if (each["name"].text == name) return each;
        }
        throw std::runtime_error("there is no tensor " + name);
    }
};

bool close(double found, double expected) {
    if (std::isnan(expected)) return std::isnan(found);
    return found == expected || std::abs(found - expected) <= kTolerance * (1 + std::abs(expected));
}

/// 0 where all golden examples have the expected outputs.
int replay(Bundle& bundle) {
    double largest = 0;
    int different = 0;
    const auto examples = bundle.golden();
    for (const Json& example : examples) {
        const auto found = bundle.predict({example["inputs"]});
        for (const auto& [name, values] : found) {
            const auto expected = numbers(example["outputs"][name]);
            if (expected.size() != values.size()) throw std::runtime_error(name + " has another size");
            for (size_t i = 0; i < values.size(); i++) {
                const double apart = std::abs(values[i] - expected[i]) / std::max(1.0, std::abs(expected[i]));
                if (std::isfinite(apart)) largest = std::max(largest, apart);
                if (close(values[i], expected[i]) || different++ > 9) continue;
                std::printf("%s: %s %.6g, expected %.6g\n", example["name"].text.c_str(), name.c_str(), values[i], expected[i]);
            }
        }
    }
    std::printf("%zu golden examples, largest difference %.1e\n", examples.size(), largest);
    return different == 0 ? 0 : 1;
}

int timed(Bundle& bundle) {
    const std::vector<Json> rows = {bundle.golden().at(0)["inputs"]};
    std::vector<double> times;
    for (int i = 0; i < kTimed; i++) {
        const auto from = std::chrono::steady_clock::now();
        bundle.predict(rows);
        times.push_back(std::chrono::duration<double, std::milli>(std::chrono::steady_clock::now() - from).count());
    }
    std::sort(times.begin(), times.end());
    std::printf("median %.3f ms, best %.3f ms\n", times[kTimed / 2], times[0]);
    return 0;
}

void print(const Bundle& bundle, const std::map<std::string, std::vector<double>>& outputs, size_t rows) {
    for (size_t number = 0; number < rows; number++) {
        for (const Json& output : bundle.signature["outputs"].list) {
            const auto& values = outputs.at(output["name"].text);
            const size_t size = values.size() / rows;
            std::printf("%s", output["name"].text.c_str());
            for (size_t i = 0; i < size; i++) {
                const std::string name = output.has("classes") ? output["classes"].list.at(i).text + " " : "";
                std::printf("  %s%.6f", name.c_str(), values[number * size + i]);
            }
            std::printf("\n");
        }
    }
}

}  // namespace

int main(int count, char** words) {
    try {
        if (count < 3) {
            std::fprintf(stderr, "predict FOLDER --golden | --time | TEXT...\n");
            return 2;
        }
        Bundle bundle(words[1]);
        if (!std::strcmp(words[2], "--golden")) return replay(bundle);
        if (!std::strcmp(words[2], "--time")) return timed(bundle);
        std::vector<Json> rows;
        for (int i = 2; i < count; i++) {
            Json text, row;
            text.kind = Json::String;
            text.text = words[i];
            row.object[bundle.signature["inputs"].list.at(0)["name"].text] = text;
            rows.push_back(row);
        }
        print(bundle, bundle.predict(rows), rows.size());
        return 0;
    } catch (const std::exception& error) {
        std::fprintf(stderr, "%s\n", error.what());
        return 1;
    }
}
