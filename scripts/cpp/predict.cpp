// Runs a bundle of jaxtrain from C++ on ONNX Runtime: raw inputs to tensors to outputs, without Python.
//
//     predict FOLDER TEXT...   for each text a line of JSON, as the outputs of golden.json; a text is the one input
//     predict FOLDER --rows    for each line of JSON on stdin, as the inputs of golden.json; {"error": ...} for a bad one
//     predict FOLDER --golden  how many golden examples there are, and the largest difference from their outputs
//     predict FOLDER --time    milliseconds for the first golden example
//
// FOLDER is that of a version. `--file model.int8.onnx` before it takes another graph. Every file that is read is
// verified by its hash in the manifest, and the manifest by the hash that it holds of itself; a graph with weights in
// other files is refused. The golden examples are computed before anything else. Exit codes: 1 for a damaged file or a
// bad row, 2 for a mistake of whoever calls it.

#include <chrono>
#include <cstdio>
#include <cstring>
#include <iostream>

#include "bundle.h"

namespace {

constexpr int kTimed = 200;

int read_rows(const Bundle& bundle) {
    int code = 0;
    for (std::string line; std::getline(std::cin, line);) {
        try {
            std::puts(bundle.json_of_row(bundle.predict({JsonReader::read(line)}), 0).c_str());
        } catch (const std::exception& error) {
            std::puts(("{\"error\": " + json_of(std::string(error.what())) + "}").c_str());
            code = 1;
        }
    }
    return code;
}

int time(const Bundle& bundle) {
    const std::vector<Json> rows = {bundle.golden.at(0)["inputs"]};
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

int read_texts(const Bundle& bundle, const std::vector<std::string>& texts) {
    std::vector<Json> rows;
    for (const std::string& each : texts) {
        Json text, row;
        text.kind = Json::String;
        text.text = each;
        row.kind = Json::Object;
        row.object[bundle.signature["inputs"].list.at(0)["name"].text] = text;
        rows.push_back(row);
    }
    const Outputs outputs = bundle.predict(rows);
    for (size_t row = 0; row < rows.size(); row++) std::puts(bundle.json_of_row(outputs, row).c_str());
    return 0;
}

}  // namespace

int main(int count, char** given) {
    std::vector<std::string> words(given + 1, given + count);
    std::string file = "model.onnx";
    if (words.size() > 1 && words[0] == "--file") {
        file = words[1];
        words.erase(words.begin(), words.begin() + 2);
    }
    if (words.size() < 2) {
        std::fputs("predict [--file model.int8.onnx] FOLDER --rows | --golden | --time | TEXT...\n", stderr);
        return 2;
    }
    try {
        const Bundle bundle(words[0], file);
        if (words[1] == "--rows") return read_rows(bundle);
        if (words[1] == "--time") return time(bundle);
        if (words[1] != "--golden") return read_texts(bundle, {words.begin() + 1, words.end()});
        std::printf("%zu golden examples, largest difference %.1e\n", bundle.golden.size(), bundle.difference);
        return 0;
    } catch (const Mistake& mistake) {
        std::fprintf(stderr, "%s\n", mistake.what());
        return 2;
    } catch (const std::exception& error) {
        std::fprintf(stderr, "%s\n", error.what());
        return 1;
    }
}
