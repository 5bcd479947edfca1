-- Made by llama-index-vector-stores-postgres 0.9.0, on pgvector 0.8.5; scripts/foreign-tables makes it again.
CREATE EXTENSION IF NOT EXISTS vector;

CREATE TABLE public.data_halves (
    id bigint NOT NULL,
    text character varying NOT NULL,
    metadata_ jsonb,
    node_id character varying,
    embedding public.halfvec(8)
);

CREATE SEQUENCE public.data_halves_id_seq
    START WITH 1
    INCREMENT BY 1
    NO MINVALUE
    NO MAXVALUE
    CACHE 1;

ALTER SEQUENCE public.data_halves_id_seq OWNED BY public.data_halves.id;

CREATE TABLE public.data_notes (
    id bigint NOT NULL,
    text character varying NOT NULL,
    metadata_ json,
    node_id character varying,
    embedding public.vector(8)
);

CREATE SEQUENCE public.data_notes_id_seq
    START WITH 1
    INCREMENT BY 1
    NO MINVALUE
    NO MAXVALUE
    CACHE 1;

ALTER SEQUENCE public.data_notes_id_seq OWNED BY public.data_notes.id;

ALTER TABLE ONLY public.data_halves ALTER COLUMN id SET DEFAULT nextval('public.data_halves_id_seq'::regclass);

ALTER TABLE ONLY public.data_notes ALTER COLUMN id SET DEFAULT nextval('public.data_notes_id_seq'::regclass);

INSERT INTO public.data_halves VALUES (1, 'a heron waits', '{"n": 0, "kind": "bird", "doc_id": "None", "_node_type": "TextNode", "ref_doc_id": "None", "document_id": "None", "_node_content": "{\"id_\": \"00000001-0000-4000-8000-000000000000\", \"embedding\": null, \"metadata\": {\"kind\": \"bird\", \"n\": 0}, \"excluded_embed_metadata_keys\": [], \"excluded_llm_metadata_keys\": [], \"relationships\": {}, \"metadata_template\": \"{key}: {value}\", \"metadata_separator\": \"\\n\", \"text\": \"\", \"mimetype\": \"text/plain\", \"start_char_idx\": null, \"end_char_idx\": null, \"text_template\": \"{metadata_str}\\n\\n{content}\", \"class_name\": \"TextNode\"}"}', '00000001-0000-4000-8000-000000000000', '[0.5,-0.375,-0.625,1,-0.75,-0.375,0.25,0.625]');
INSERT INTO public.data_halves VALUES (2, 'the tide turns', '{"n": 1, "kind": "sea", "doc_id": "None", "_node_type": "TextNode", "ref_doc_id": "None", "document_id": "None", "_node_content": "{\"id_\": \"00000002-0000-4000-8000-000000000000\", \"embedding\": null, \"metadata\": {\"kind\": \"sea\", \"n\": 1}, \"excluded_embed_metadata_keys\": [], \"excluded_llm_metadata_keys\": [], \"relationships\": {}, \"metadata_template\": \"{key}: {value}\", \"metadata_separator\": \"\\n\", \"text\": \"\", \"mimetype\": \"text/plain\", \"start_char_idx\": null, \"end_char_idx\": null, \"text_template\": \"{metadata_str}\\n\\n{content}\", \"class_name\": \"TextNode\"}"}', '00000002-0000-4000-8000-000000000000', '[0.25,0.75,-1,-0.25,0.125,-0.125,-0.25,-0.25]');
INSERT INTO public.data_halves VALUES (3, 'rain on slate', '{"n": 2, "kind": "sky", "doc_id": "None", "_node_type": "TextNode", "ref_doc_id": "None", "document_id": "None", "_node_content": "{\"id_\": \"00000003-0000-4000-8000-000000000000\", \"embedding\": null, \"metadata\": {\"kind\": \"sky\", \"n\": 2}, \"excluded_embed_metadata_keys\": [], \"excluded_llm_metadata_keys\": [], \"relationships\": {}, \"metadata_template\": \"{key}: {value}\", \"metadata_separator\": \"\\n\", \"text\": \"\", \"mimetype\": \"text/plain\", \"start_char_idx\": null, \"end_char_idx\": null, \"text_template\": \"{metadata_str}\\n\\n{content}\", \"class_name\": \"TextNode\"}"}', '00000003-0000-4000-8000-000000000000', '[-1,-0.875,0.125,0,1,-0.5,0.75,-0.5]');
INSERT INTO public.data_halves VALUES (4, 'seven bells', '{"n": 3, "kind": "sea", "doc_id": "None", "_node_type": "TextNode", "ref_doc_id": "None", "document_id": "None", "_node_content": "{\"id_\": \"00000004-0000-4000-8000-000000000000\", \"embedding\": null, \"metadata\": {\"kind\": \"sea\", \"n\": 3}, \"excluded_embed_metadata_keys\": [], \"excluded_llm_metadata_keys\": [], \"relationships\": {}, \"metadata_template\": \"{key}: {value}\", \"metadata_separator\": \"\\n\", \"text\": \"\", \"mimetype\": \"text/plain\", \"start_char_idx\": null, \"end_char_idx\": null, \"text_template\": \"{metadata_str}\\n\\n{content}\", \"class_name\": \"TextNode\"}"}', '00000004-0000-4000-8000-000000000000', '[-0.75,-0.625,-0.25,-0.625,0.875,0.625,0.625,-0.125]');
INSERT INTO public.data_halves VALUES (5, 'salt and rope', '{"n": 4, "kind": "sea", "doc_id": "None", "_node_type": "TextNode", "ref_doc_id": "None", "document_id": "None", "_node_content": "{\"id_\": \"00000005-0000-4000-8000-000000000000\", \"embedding\": null, \"metadata\": {\"kind\": \"sea\", \"n\": 4}, \"excluded_embed_metadata_keys\": [], \"excluded_llm_metadata_keys\": [], \"relationships\": {}, \"metadata_template\": \"{key}: {value}\", \"metadata_separator\": \"\\n\", \"text\": \"\", \"mimetype\": \"text/plain\", \"start_char_idx\": null, \"end_char_idx\": null, \"text_template\": \"{metadata_str}\\n\\n{content}\", \"class_name\": \"TextNode\"}"}', '00000005-0000-4000-8000-000000000000', '[-1,-0.5,-0.125,0.25,-0.125,0.25,-0.25,0.25]');

INSERT INTO public.data_notes VALUES (1, 'a heron waits', '{"kind": "bird", "n": 0, "_node_content": "{\"id_\": \"00000001-0000-4000-8000-000000000000\", \"embedding\": null, \"metadata\": {\"kind\": \"bird\", \"n\": 0}, \"excluded_embed_metadata_keys\": [], \"excluded_llm_metadata_keys\": [], \"relationships\": {}, \"metadata_template\": \"{key}: {value}\", \"metadata_separator\": \"\\n\", \"text\": \"\", \"mimetype\": \"text/plain\", \"start_char_idx\": null, \"end_char_idx\": null, \"text_template\": \"{metadata_str}\\n\\n{content}\", \"class_name\": \"TextNode\"}", "_node_type": "TextNode", "document_id": "None", "doc_id": "None", "ref_doc_id": "None"}', '00000001-0000-4000-8000-000000000000', '[0.5,-0.375,-0.625,1,-0.75,-0.375,0.25,0.625]');
INSERT INTO public.data_notes VALUES (2, 'the tide turns', '{"kind": "sea", "n": 1, "_node_content": "{\"id_\": \"00000002-0000-4000-8000-000000000000\", \"embedding\": null, \"metadata\": {\"kind\": \"sea\", \"n\": 1}, \"excluded_embed_metadata_keys\": [], \"excluded_llm_metadata_keys\": [], \"relationships\": {}, \"metadata_template\": \"{key}: {value}\", \"metadata_separator\": \"\\n\", \"text\": \"\", \"mimetype\": \"text/plain\", \"start_char_idx\": null, \"end_char_idx\": null, \"text_template\": \"{metadata_str}\\n\\n{content}\", \"class_name\": \"TextNode\"}", "_node_type": "TextNode", "document_id": "None", "doc_id": "None", "ref_doc_id": "None"}', '00000002-0000-4000-8000-000000000000', '[0.25,0.75,-1,-0.25,0.125,-0.125,-0.25,-0.25]');
INSERT INTO public.data_notes VALUES (3, 'rain on slate', '{"kind": "sky", "n": 2, "_node_content": "{\"id_\": \"00000003-0000-4000-8000-000000000000\", \"embedding\": null, \"metadata\": {\"kind\": \"sky\", \"n\": 2}, \"excluded_embed_metadata_keys\": [], \"excluded_llm_metadata_keys\": [], \"relationships\": {}, \"metadata_template\": \"{key}: {value}\", \"metadata_separator\": \"\\n\", \"text\": \"\", \"mimetype\": \"text/plain\", \"start_char_idx\": null, \"end_char_idx\": null, \"text_template\": \"{metadata_str}\\n\\n{content}\", \"class_name\": \"TextNode\"}", "_node_type": "TextNode", "document_id": "None", "doc_id": "None", "ref_doc_id": "None"}', '00000003-0000-4000-8000-000000000000', '[-1,-0.875,0.125,0,1,-0.5,0.75,-0.5]');
INSERT INTO public.data_notes VALUES (4, 'seven bells', '{"kind": "sea", "n": 3, "_node_content": "{\"id_\": \"00000004-0000-4000-8000-000000000000\", \"embedding\": null, \"metadata\": {\"kind\": \"sea\", \"n\": 3}, \"excluded_embed_metadata_keys\": [], \"excluded_llm_metadata_keys\": [], \"relationships\": {}, \"metadata_template\": \"{key}: {value}\", \"metadata_separator\": \"\\n\", \"text\": \"\", \"mimetype\": \"text/plain\", \"start_char_idx\": null, \"end_char_idx\": null, \"text_template\": \"{metadata_str}\\n\\n{content}\", \"class_name\": \"TextNode\"}", "_node_type": "TextNode", "document_id": "None", "doc_id": "None", "ref_doc_id": "None"}', '00000004-0000-4000-8000-000000000000', '[-0.75,-0.625,-0.25,-0.625,0.875,0.625,0.625,-0.125]');
INSERT INTO public.data_notes VALUES (5, 'salt and rope', '{"kind": "sea", "n": 4, "_node_content": "{\"id_\": \"00000005-0000-4000-8000-000000000000\", \"embedding\": null, \"metadata\": {\"kind\": \"sea\", \"n\": 4}, \"excluded_embed_metadata_keys\": [], \"excluded_llm_metadata_keys\": [], \"relationships\": {}, \"metadata_template\": \"{key}: {value}\", \"metadata_separator\": \"\\n\", \"text\": \"\", \"mimetype\": \"text/plain\", \"start_char_idx\": null, \"end_char_idx\": null, \"text_template\": \"{metadata_str}\\n\\n{content}\", \"class_name\": \"TextNode\"}", "_node_type": "TextNode", "document_id": "None", "doc_id": "None", "ref_doc_id": "None"}', '00000005-0000-4000-8000-000000000000', '[-1,-0.5,-0.125,0.25,-0.125,0.25,-0.25,0.25]');

SELECT pg_catalog.setval('public.data_halves_id_seq', 5, true);

SELECT pg_catalog.setval('public.data_notes_id_seq', 5, true);

ALTER TABLE ONLY public.data_halves
    ADD CONSTRAINT data_halves_pkey PRIMARY KEY (id);

ALTER TABLE ONLY public.data_notes
    ADD CONSTRAINT data_notes_pkey PRIMARY KEY (id);

CREATE INDEX data_halves_embedding_idx ON public.data_halves USING hnsw (embedding public.halfvec_l2_ops) WITH (m='16', ef_construction='64');

CREATE INDEX data_notes_embedding_idx ON public.data_notes USING hnsw (embedding public.vector_cosine_ops) WITH (m='16', ef_construction='64');

CREATE INDEX halves_idx_1 ON public.data_halves USING btree (((metadata_ ->> 'ref_doc_id'::text)));

CREATE INDEX notes_idx_1 ON public.data_notes USING btree (((metadata_ ->> 'ref_doc_id'::text)));
