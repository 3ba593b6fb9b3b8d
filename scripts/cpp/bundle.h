// A bundle: its files verified by their hashes, its graph on ONNX Runtime, its golden examples computed.
#pragma once

#include <algorithm>
#include <cmath>
#include <fstream>
#include <map>
#include <sstream>
#include <stdexcept>
#include <string>
#include <vector>

#include "inputs.h"
#include "json.h"
#include "manifest.h"
#include "onnxruntime.h"
#include "sha256.h"

using Outputs = std::map<std::string, Numbers>;  // rows one after the other

class Bundle {
  public:
    /// Loads a version folder. Throws runtime_error for a file that is not what was exported, and for a golden example
    /// whose outputs are others; Mistake for what is no bundle.
    Bundle(const std::string& folder, const std::string& file)
        : folder(folder),
          file(file),
          manifest(checked_manifest()),
          signature(verified_json("signature.json")),
          golden(verified_json("golden.json")["examples"].list),
          graph(verified(file)) {
        for (const Json& each : signature["tensors"].list) {
            if (!ort::dtypes().count(each["dtype"].text)) throw Mistake("C++ has no " + each["dtype"].text + " here");
            require(graph.inputs, each["name"].text);
        }
        for (const Json& each : signature["outputs"].list) require(graph.outputs, name_in_graph(each["name"].text));
        try {
            replay();
        } catch (const Mistake& mistake) {
            damaged("golden.json", mistake.what());
        }
    }

    const std::string folder, file;
    const Json manifest, signature;
    const std::vector<Json> golden;
    double difference = 0;  // the largest of a golden output from the expected one, as a share of it above 1

    /// The outputs by name. Throws Mistake, naming row and input.
    Outputs predict(const std::vector<Json>& rows) const {
        // In int8 the activations of a call have one scale, so that rows would change each other.
        const size_t most = is_int8() ? 1 : static_cast<size_t>(signature["max_batch"].number);
        Outputs found;
        for (size_t start = 0; start < rows.size(); start += most) {
            const auto part = graph.run(tensors_of(rows, start, std::min(rows.size(), start + most)));
            for (const Json& each : signature["outputs"].list) {
                const Numbers& more = part.at(name_in_graph(each["name"].text));
                Numbers& all = found[each["name"].text];
                all.insert(all.end(), more.begin(), more.end());
            }
        }
        return found;
    }

    bool is_int8() const { return file == "model.int8.onnx"; }

    /// One row of outputs as JSON, as in golden.json.
    std::string json_of_row(const Outputs& outputs, size_t row) const {
        std::string found;
        for (const Json& each : signature["outputs"].list) {
            const auto shape = shape_of(each["shape"], 1);
            size_t size = 1;
            for (size_t dim : shape) size *= dim;
            const double* numbers = outputs.at(each["name"].text).data() + row * size;
            found += (found.empty() ? "{" : ", ") + json_of(each["name"].text) + ": " + json_of(numbers, shape);
        }
        return found + "}";
    }

  private:
    const ort::Graph graph;

    std::string content(const std::string& name) const {
        std::ifstream stream(folder + "/" + name, std::ios::binary);
        if (!stream) throw Mistake(folder + "/" + name + " cannot be read");
        std::stringstream found;
        found << stream.rdbuf();
        return found.str();
    }

    Json checked_manifest() const {
        const Json found = parsed("manifest.json", content("manifest.json"));
        try {
            check_manifest(found);
        } catch (const std::runtime_error& error) {
            damaged("manifest.json", error.what());
        }
        return found;
    }

    /// The content of a file. Throws where it is not what the manifest says.
    std::string verified(const std::string& name) const {
        if (name.find_first_of("/\\") != std::string::npos) throw Mistake("give the name of a file, without / and \\");
        const auto& files = manifest["files"];
        if (!files.has(name)) throw Mistake(folder + " has no " + name + ": export it again where it can be made");
        const std::string found = content(name);
        const auto written = static_cast<size_t>(files[name]["bytes"].number);
        if (found.size() != written) {
            damaged(name, "it has " + std::to_string(found.size()) + " bytes, of " + std::to_string(written) +
                              " that were written");
        }
        if (sha256(found) != files[name]["sha256"].text) damaged(name, "its sha256 is not that of what was written");
        return found;
    }

    Json verified_json(const std::string& name) const { return parsed(name, verified(name)); }

    Json parsed(const std::string& name, const std::string& text) const {
        Json found;
        try {
            found = JsonReader::read(text);
        } catch (const std::exception& error) {
            damaged(name, error.what());
        }
        if (found.number_or("format", 1) > 1) {
            throw Mistake(folder + "/" + name + ": it is of format " + json_of(found["format"].number) +
                          ", and this program reads 1");
        }
        return found;
    }

    [[noreturn]] void damaged(const std::string& name, const std::string& why) const {
        throw std::runtime_error(folder + "/" + name + ": " + why);
    }

    void require(const std::vector<std::string>& names, const std::string& name) const {
        if (std::find(names.begin(), names.end(), name) == names.end()) {
            damaged(file, "it has no " + name + ", which signature.json names");
        }
    }

    /// The name that an output has in the graph: another one where an input has the same.
    std::string name_in_graph(const std::string& output) const {
        for (const Json& each : signature["tensors"].list) {
            if (each["name"].text == output) return "output/" + output;
        }
        return output;
    }

    std::map<std::string, ort::Tensor> tensors_of(const std::vector<Json>& rows, size_t start, size_t stop) const {
        std::map<std::string, ort::Tensor> found;
        for (const Json& each : signature["tensors"].list) {
            std::vector<int64_t> shape = {static_cast<int64_t>(stop - start)};
            for (size_t dim : shape_of(each["shape"], 1)) shape.push_back(static_cast<int64_t>(dim));
            found[each["name"].text] = {each["dtype"].text, shape, {}};
        }
        for (size_t number = start; number < stop; number++) {
            try {
                check_names(rows[number]);
                for (const Json& input : signature["inputs"].list)
                    append(input, rows[number], found.at(input["tensor"].text));
            } catch (const Mistake& mistake) {
                throw Mistake(rows.size() > 1 ? "row " + std::to_string(number) + ": " + mistake.what()
                                              : mistake.what());
            }
        }
        return found;
    }

    static void append(const Json& input, const Json& row, ort::Tensor& tensor) {
        const std::string& name = input["name"].text;
        try {
            const Numbers more = row_of(input, row.has(name) ? row[name] : Json());
            tensor.numbers.insert(tensor.numbers.end(), more.begin(), more.end());
        } catch (const Mistake& mistake) {
            throw Mistake("input '" + name + "': " + mistake.what());
        }
    }

    void check_names(const Json& row) const {
        if (row.kind != Json::Object) throw Mistake("it is no object of inputs by name");
        const auto& inputs = signature["inputs"].list;
        for (const auto& given : row.object) {
            const auto is_given = [&](const Json& each) { return each["name"].text == given.first; };
            if (std::none_of(inputs.begin(), inputs.end(), is_given))
                throw Mistake("there is no input '" + given.first + "'");
        }
        for (const Json& each : inputs) {
            const bool missing = each.has("missing") && each["missing"].number != 0;
            if (!row.has(each["name"].text) && !missing) throw Mistake("input '" + each["name"].text + "' is missing");
        }
    }

    /// Computes the golden examples. Throws, with the first difference, where an output is another.
    void replay() {
        const double tolerance = is_int8() ? verified_json("metrics.json")["int8_tolerance"].number : 1e-4;
        std::vector<Json> rows;
        if (golden.empty()) damaged("golden.json", "it holds no examples");
        for (const Json& each : golden) rows.push_back(each["inputs"]);
        const Outputs outputs = predict(rows);
        for (const Json& spec : signature["outputs"].list) {
            const Numbers& found = outputs.at(spec["name"].text);
            Numbers expected;
            for (const Json& each : golden)
                collect(each["outputs"][spec["name"].text], shape_of(spec["shape"], 1), 0, expected);
            if (found.size() != expected.size()) damaged(file, "an output has another shape than signature.json says");
            for (size_t at = 0; at < found.size(); at++)
                compare(spec["name"].text, at / (found.size() / golden.size()), found[at], expected[at], tolerance);
        }
    }

    void compare(const std::string& output, size_t example, double found, double expected, double tolerance) {
        const double apart = std::abs(found - expected);
        if (std::isfinite(apart)) difference = std::max(difference, apart / std::max(1.0, std::abs(expected)));
        const bool same = std::isnan(expected) ? std::isnan(found)
                                               : found == expected || apart <= tolerance * (1 + std::abs(expected));
        if (same) return;
        damaged(file, "of golden example " + std::to_string(example) + " (" + golden[example]["name"].text + "), " +
                          output + " is " + json_of(found) + ", expected " + json_of(expected) +
                          ": this runtime computes something else");
    }
};
